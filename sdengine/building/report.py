"""Build report: where time and memory went, and each network's error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sdengine.checkpoints.guesses import Guess
from sdengine.compilers.native.sensitivity import LayerError
from sdengine.errors import Cancelled

# Called with a stage's name, the stages done, and all stages.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Args:
        path: the bundle.
        seconds: by stage, such as "export unet".
        peak_bytes: the most memory that the process held while building, pages of mapped files
            left out because the system can take them back; 0 where unknown.
        max_error: by network, the ONNX file's largest error relative to the largest output;
            empty for targets that need no ONNX.
        bundle_bytes: size of all files.
        replaced: by network and operator, how many patterns of the graph became one node; empty
            for targets whose own compiler fuses.
        layers: by network, the errors of its layers; empty unless they were measured.
        not_taken_over: a line for each thing in the checkpoint's files that has no effect here.
        guesses: what the checkpoint does not say and was assumed.
        ignored: tensors of its files that are none of the networks', and what each is.
    """

    path: Path
    seconds: dict[str, float]
    peak_bytes: int
    max_error: dict[str, float]
    bundle_bytes: int
    replaced: dict[str, dict[str, int]]
    layers: dict[str, list[LayerError]]
    not_taken_over: list[str]
    guesses: tuple[Guess, ...] = ()
    ignored: dict[str, str] = field(default_factory=dict)


@dataclass
class Stages:
    """The stages of a build: timed, reported as they begin, and the places where it is cancelled.

    Args:
        total: how many there will be.
        progress: told of each stage.
        cancel: once set, the next stage does not begin.
        seconds: by stage that has ended.
    """

    total: int
    progress: Progress | None = None
    cancel: threading.Event | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _open: tuple[str, float] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report and time what happens inside the block."""
        self.begin(name)
        yield
        self.end()

    def begin(self, name: str) -> None:
        """Start a stage that `end` ends.

        Raises:
            Cancelled: the build was cancelled.
        """
        if self.cancel is not None and self.cancel.is_set():
            raise Cancelled("the build was cancelled.")
        if self.progress is not None:
            self.progress(name, len(self.seconds), self.total)
        self._open = (name, time.perf_counter())

    def end(self) -> None:
        """End the stage that was begun."""
        if self._open is not None:
            name, started = self._open
            self.seconds[name] = time.perf_counter() - started
            self._open = None

    def compiler_step(self, phase: str, step: int, steps: int) -> None:
        """Report how far the compiler is within a stage."""
        self._tell(f"compile {phase}", step, steps)

    def calibration_step(self, network: str, step: int, steps: int) -> None:
        """Report how far a calibration is within a stage."""
        self._tell(f"calibrate {network}", step, steps)

    def _tell(self, what: str, step: int, steps: int) -> None:
        if self.progress is not None:
            self.progress(f"{what} {step}/{steps}", len(self.seconds), self.total)
