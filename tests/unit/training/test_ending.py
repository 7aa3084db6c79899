"""A training that a signal ends: its processes end with it, and no file stays half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's"),
]

# Two processes, each of which is in the middle of a file of its own.
PROGRAM = """
import os, sys, time
from pathlib import Path
import sdengine.cli.samplers
from sdengine.cli.main import main

def job():
    from sdengine.storage.whole_file import whole_file
    with whole_file(Path(f"file-{os.getpid()}")) as file:
        file.write(b"half")
        Path(f"begun-{os.getpid()}").touch()
        time.sleep(300)

def samplers() -> None:
    from sdengine.training.processes import run_processes
    run_processes(2, Path("run"), job)

sdengine.cli.samplers.samplers = samplers
if __name__ == "__main__":
    sys.exit(main(["samplers"]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_end_and_leave_nothing_half_written(number: int, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("begun-*"))) < 2:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert not psutil.wait_procs(children, timeout=10)[1]
    left = {path.name for path in tmp_path.iterdir()} - {"program.py", "__pycache__", "run"}
    assert {name.partition("-")[0] for name in left} == {"begun"}
    assert os.listdir(tmp_path / "run") == []
