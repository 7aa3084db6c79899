"""Builder process: send it a job, pass on its progress, end it when asked.

The builder takes several times the network's weights, and it cannot be stopped from outside while
it computes; a process can be ended at any time and gives everything back.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sdengine.errors import Cancelled, EngineBuildError, OutOfMemoryError

Progress = Callable[[str, int, int], None]

# Without the current folder, which may be anybody's, among the places of modules.
_WORKER = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; "
    "from sdengine.compilers.tensorrt.worker import main; sys.exit(main())"
)
_POLL_SECONDS = 0.05
_MAX_LOG_LINES = 12


def run_job(
    job: dict[str, Any],
    name: str,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> dict[str, Any]:
    """Let a worker do a job, and pass on how far it is.

    Args:
        job: see `worker`.
        name: of the network, for messages.
        progress: told the phase, the steps done and all steps.
        cancel: once set, the worker is ended.

    Raises:
        EngineBuildError: the job failed; the message ends with the builder's log.
        OutOfMemoryError: the system ended the worker.
        Cancelled: `cancel` was set.
    """
    last: dict[str, Any] = {}
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as worker,
        _ended_by(cancel, worker),
    ):
        try:
            assert worker.stdin is not None and worker.stdout is not None
            with contextlib.suppress(BrokenPipeError), worker.stdin as jobs:
                jobs.write(json.dumps(job))
            for line in worker.stdout:
                with contextlib.suppress(ValueError):
                    last = json.loads(line)
                if "phase" in last and progress is not None:
                    progress(f"{name}: {last['phase']}", last["step"] + 1, last["steps"])
            worker.wait()
        finally:
            worker.kill()
        complaints.seek(0)
        said = complaints.read().decode(errors="replace")
    if cancel is not None and cancel.is_set():
        raise Cancelled("the build was cancelled.")
    if "result" in last:
        result: dict[str, Any] = last["result"]
        return result
    raise _failure(name, job["module"], last, worker.returncode, said)


@contextmanager
def _ended_by(cancel: threading.Event | None, worker: subprocess.Popen[str]) -> Iterator[None]:
    """End a process once an event is set, for as long as the block lasts."""
    if cancel is None:
        yield
        return
    left = threading.Event()

    def watch() -> None:
        while not left.wait(_POLL_SECONDS):
            if cancel.is_set():
                worker.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        watcher.join()


def _failure(
    name: str, module: str, last: dict[str, Any], status: int, complaints: str
) -> EngineBuildError | OutOfMemoryError:
    if status == -signal.SIGKILL:
        return OutOfMemoryError(
            f"{name}: the builder was killed, which the system does when memory runs out."
        )
    log = [str(line) for line in last.get("log", [])] or complaints.strip().splitlines()
    told = last.get("error", f"the builder ended with status {status}")
    return EngineBuildError(
        f"{name}: {module} cannot build the engine: {told}."
        + "".join(f"\n    {line[:400]}" for line in log[-_MAX_LOG_LINES:])
    )
