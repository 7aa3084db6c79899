"""The command's process: signals that end it, closed streams, an interruption while it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")

# A command that works in a folder which it removes, until it is ended.
WORKING = """
import sys, tempfile, time
import sdengine.cli.samplers
from sdengine.cli.main import main
def samplers() -> None:
    with tempfile.TemporaryDirectory(dir="."):
        print("ready", flush=True)
        BODY
sdengine.cli.samplers.samplers = samplers
sys.exit(main(["samplers"]))
"""


def start(body: str, folder: Path, ignored: int | None = None) -> subprocess.Popen[str]:
    def prepare() -> None:  # a shell's background jobs ignore some, and so would this one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", WORKING.replace("BODY", body.replace("\n", "\n        "))],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert len(os.listdir(folder)) == 1
    return process


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "error: interrupted; nothing half-written was left behind.\n"),
        (signal.SIGTERM, "error: ended by SIGTERM; nothing half-written was left behind.\n"),
        (signal.SIGHUP, "error: ended by SIGHUP; nothing half-written was left behind.\n"),
    ],
)
def test_a_signal_that_ends_it_leaves_nothing(number: int, said: str, tmp_path: Path) -> None:
    with start("time.sleep(60)", tmp_path) as process:
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (128 + number, "", said)
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\ntime.sleep(0.05)"
    with start(body, tmp_path, signal.SIGHUP) as process:
        assert process.wait(timeout=30) == 0


def test_a_second_signal_does_not_disturb_the_clean_up(tmp_path: Path) -> None:
    body = (
        "import os, signal\n"
        "try:\n    time.sleep(60)\n"
        "finally:\n    os.kill(os.getpid(), signal.SIGHUP)\n    time.sleep(0.05)"
    )
    with start(body, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_an_interruption_that_foreign_code_renames_is_one(tmp_path: Path) -> None:
    body = (
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise ImportError('multiarray failed to import')"
    )
    with start(body, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error.count("\n")) == (130, 1)
    assert error.startswith("error: interrupted")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("KeyboardInterrupt", 130, "error: interrupted; nothing half-written was left behind.\n"),
        ("ImportError('broken')", 1, "error: the installation is incomplete: broken.\n"),
    ],
)
def test_what_happens_while_it_is_imported(
    raised: str, status: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text(f"raise {raised}")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "sdengine", "samplers"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_the_installed_script_begins_where_the_import_is_guarded() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert 'sdengine = "sdengine.__main__:main"' in text
    # What runs before: the package itself, which must not take long.
    command = [sys.executable, "-c", "import sys; import sdengine; print(*sys.modules)"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"typer", "numpy", "sdengine.cli.main"} & set(found)


def without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


COMMANDS = (
    ("samplers",),
    ("samplers", "--json"),
    ("inspect",),
    ("verify",),
    ("doctor",),
    ("cache",),
    ("tokens", "a (b:1.2)"),
    ("--version",),
    ("--help",),
    ("generate", "a circle", "--steps", "1", "-o", "out.png"),
    ("generate", "a circle", "--steps", "1", "-o", "out.png", "--json"),
)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:30])
@pytest.mark.parametrize("how", ["no output", "no errors", "neither, no input", "no readers"])
def test_every_command_does_its_work_where_nobody_reads(
    command: tuple[str, ...], how: str, tmp_path: Path
) -> None:
    closed = {"no output": (1,), "no errors": (2,), "neither, no input": (0, 1, 2)}.get(how, ())

    def close() -> None:
        for number in closed:
            os.close(number)

    streams = {}
    if how == "no readers":
        streams = {"stdout": (writer := without_reader()), "stderr": writer}
    run = [sys.executable, "-m", "sdengine", *command]
    done = subprocess.run(run, cwd=tmp_path, timeout=120, preexec_fn=close, **streams)  # type: ignore[call-overload]
    assert done.returncode == 0
    assert os.listdir(tmp_path) == (["out.png"] if "generate" in command else [])
