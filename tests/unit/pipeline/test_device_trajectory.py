"""Where a trajectory's steps run, and between which steps the host has something to do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sdengine.backends.base import Array
from sdengine.backends.device_protocols import DeviceRun, TrajectoryKind
from sdengine.bundle.tensors import TensorSpec
from sdengine.pipeline.device_trajectory import _cancelling, choose_device, segments
from sdengine.pipeline.row_plan import RowPlan
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

KIND = TrajectoryKind(batch=1, copies=2, channels=4, evaluations=20, registers=2)
PLAIN = RowPlan((0, 1), np.ones((1, 1), np.float32), True)
JOINED = RowPlan((0, 1, 2), np.array([[1.0], [0.5]], np.float32), True)


class HostModule:
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return {}

    def close(self) -> None:
        pass


class DeviceModule(HostModule):
    def refuses(self, kind: TrajectoryKind) -> str:
        return "it has 9 rows, the engine 4" if kind.batch == 9 else ""

    def is_ready(self, kind: TrajectoryKind) -> bool:
        return True

    def prepare(self, kind: TrajectoryKind) -> None:
        raise NotImplementedError

    def begin(
        self, kind: TrajectoryKind, program: SamplerProgram, guidance_scale: float, initial: Array
    ) -> DeviceRun:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("module", "plan", "rescale", "clean_every", "batch", "reason"),
    [
        (DeviceModule, PLAIN, 0.0, 0, 1, ""),
        (HostModule, PLAIN, 0.0, 0, 1, "read and write the host's memory"),
        (DeviceModule, JOINED, 0.0, 0, 1, "joined by AND"),
        (DeviceModule, PLAIN, 0.7, 0, 1, "guidance_rescale"),
        (DeviceModule, PLAIN, 0.0, 3, 1, "previews"),
        (DeviceModule, PLAIN, 0.0, 0, 9, "9 rows, the engine 4"),
    ],
)
def test_one_function_says_where_and_why(
    module: type[HostModule],
    plan: RowPlan,
    rescale: float,
    clean_every: int,
    batch: int,
    reason: str,
) -> None:
    kind = TrajectoryKind(batch, 2, 4, 20, 2)
    found, why = choose_device(module(), kind, [PLAIN, plan], rescale, clean_every)
    assert (found is not None) == (reason == "") == (why == "")
    assert reason in why


def test_steps_are_one_piece_unless_prompts_change_or_somebody_looks() -> None:
    other = RowPlan((0, 2), np.ones((1, 1), np.float32), True)
    plans = [PLAIN, PLAIN, other, other, other, PLAIN]
    assert list(segments(plans, one_by_one=False)) == [(0, 2), (2, 5), (5, 6)]
    assert list(segments(plans, one_by_one=True)) == [(k, k + 1) for k in range(6)]
    assert list(segments([PLAIN], one_by_one=False)) == [(0, 1)]


class Run:
    """Notes when it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def use(self, inputs: Mapping[str, Any]) -> None: ...

    def advance(self, count: int, noise: NoiseSource) -> None: ...

    def steps_done(self) -> int:
        return 0

    def latents(self) -> np.ndarray[Any, Any]:
        return np.zeros(1, np.float32)

    def cancel(self) -> None:
        self.cancelled.set()


def test_only_the_run_that_goes_on_is_cancelled() -> None:
    cancel, run = threading.Event(), Run()
    with _cancelling(cancel, run):
        cancel.set()
        assert run.cancelled.wait(10)
    late, ended = threading.Event(), Run()
    with _cancelling(late, ended):
        pass
    late.set()
    with _cancelling(None, ended):
        pass
    assert not ended.cancelled.wait(0.1)
