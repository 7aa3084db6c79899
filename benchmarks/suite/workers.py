"""Workers: the processes of all sides, as many at once as the memory holds."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdengine.benchmarks.modules import module_command
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import Place
from sdengine.errors import SdengineError
from sdengine.machine import free_memory_bytes

# Beyond what a side took before, so that a neighbour that grows does not end it.
_MARGIN = 1.15
_KILLED = -signal.SIGKILL
# The kernel ends such a process first where memory runs out, and not whoever waits for it.
_FIRST_TO_GO = "1000"


class SideError(SdengineError):
    """A side could not be measured; `state` says how it ended."""

    def __init__(self, state: str, why: str) -> None:
        super().__init__(why)
        self.state = state


@dataclass(frozen=True)
class Launch:
    """How a side's process is started.

    Args:
        label: what tables call it.
        module, name: of the class that is the side.
        precision: what it computes in.
        place: where its model is.
        setting: what it is asked for.
    """

    label: str
    module: str
    name: str
    precision: str
    place: Place
    setting: Setting


class Worker:
    """A side's process."""

    def __init__(self, launch: Launch, log: Path, limit_seconds: float) -> None:
        """Start it; nothing is imported there until the first command.

        Args:
            launch: what to start.
            log: file of what the process prints.
            limit_seconds: the most that one command may take.
        """
        self._log = log
        self._limit = limit_seconds
        self._answers, theirs = os.pipe()
        task = {
            "module": launch.module,
            "class": launch.name,
            "precision": launch.precision,
            "place": asdict(launch.place),
            "setting": asdict(launch.setting),
            "answers": theirs,
        }
        environment = dict(os.environ)
        if launch.setting.threads is not None:
            environment["OMP_NUM_THREADS"] = str(launch.setting.threads)
        command = module_command("sdengine.benchmarks.suite.worker", json.dumps(task))
        try:
            with log.open("ab") as printed:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=printed,
                    stderr=printed,
                    pass_fds=(theirs,),
                    env=environment,
                )
        finally:
            os.close(theirs)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self._process.pid}/oom_score_adj").write_text(_FIRST_TO_GO)
        self._rest = b""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return its answer.

        Raises:
            SideError: it failed, was killed, or took too long; the process is gone then.
        """
        assert self._process.stdin is not None
        line = json.dumps({"do": do, **arguments}) + "\n"
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        answer: dict[str, Any] = json.loads(self._line(do))
        state = answer.pop("state")
        if state != "measured":
            self.end()
            raise SideError(state, answer["why"])
        return answer

    def end(self) -> None:
        """End the process; a second call does nothing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1

    def _line(self, do: str) -> bytes:
        until = time.monotonic() + self._limit
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                self.end()
                raise SideError("failed", f"{do} took more than {self._limit:g} s")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise self._ended()
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _ended(self) -> SideError:
        """Return why the process is gone."""
        status = self._process.wait()
        self.end()
        if status == _KILLED:
            return SideError("out of memory", "the system ended its process (SIGKILL)")
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1][:300] if lines else ""
        return SideError("failed", f"its process ended with status {status}: {last}".rstrip(": "))


class Workers:
    """Keep the sides' processes while memory lasts, and start again what was ended for it."""

    def __init__(
        self, launches: Mapping[str, Launch], folder: Path, limit_seconds: float = 3600.0
    ) -> None:
        """Start nothing yet.

        Args:
            launches: by label.
            folder: of the logs.
            limit_seconds: the most that one command may take.
        """
        self.launches = launches
        self.peaks: dict[str, int] = {}
        self._folder = folder
        self._limit = limit_seconds
        self._alive: dict[str, Worker] = {}

    def get(self, label: str) -> tuple[Worker, bool]:
        """Return a side's worker and whether it was started just now.

        Where memory is short, workers that were not used for longest are ended first.
        """
        if label in self._alive:
            self._alive[label] = self._alive.pop(label)  # the last to be ended
            return self._alive[label], False
        # Unknown yet: what the largest took, or nothing is kept beside the first of its kind.
        needed = self.peaks.get(label, max(self.peaks.values(), default=0)) * _MARGIN
        while self._alive and free_memory_bytes() < needed:
            self.drop(next(iter(self._alive)))
        log = self._folder / f"{label.replace(' ', '-')}.log"
        worker = Worker(self.launches[label], log, self._limit)
        self._alive[label] = worker
        return worker, True

    def drop(self, label: str) -> None:
        """End a side's worker if it lives."""
        worker = self._alive.pop(label, None)
        if worker is not None:
            worker.end()

    def note_peak(self, label: str, peak: int) -> None:
        """Remember the most that a side took."""
        self.peaks[label] = max(peak, self.peaks.get(label, 0))

    def alive(self, label: str) -> Worker | None:
        """Return a side's worker if it lives."""
        return self._alive.get(label)

    def close(self) -> None:
        """End all."""
        for label in list(self._alive):
            self.drop(label)

    @contextlib.contextmanager
    def closing(self) -> Iterator[Workers]:
        """End all at the end of the block, whatever ends it."""
        try:
            yield self
        finally:
            self.close()
