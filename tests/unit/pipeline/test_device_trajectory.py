"""Where a trajectory's steps run, and between which steps the host has something to do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from support.native_server import SCHEDULE

from sdengine.backends.base import Array
from sdengine.backends.device_protocols import DeviceRun, TrajectoryKind
from sdengine.bundle.tensors import TensorSpec
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.device_trajectory import (
    Seen,
    _cancelling,
    choose_device,
    end_of_rows,
    run_on_device,
    segments,
)
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.unet_inputs import UNetInputs
from sdengine.samplers import SamplerProgram, build_program
from sdengine.samplers.noise import NoiseSource

KIND = TrajectoryKind(batch=1, copies=2, channels=4, evaluations=20, registers=2)
STEERED = ({"is_steered": True}, "controls run between its steps")
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
        self,
        kind: TrajectoryKind,
        program: SamplerProgram,
        guidance_scale: float,
        registers: Array,
        first: int = 0,
    ) -> DeviceRun:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("module", "plan", "rescale", "clean_every", "batch", "reason"),
    [
        (DeviceModule, PLAIN, 0.0, 0, 1, ""),
        (HostModule, PLAIN, 0.0, 0, 1, "run one by one"),
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


def test_what_reads_pictures_in_each_step_runs_on_the_host() -> None:
    for fields, reason in (
        ({"keeps_part": True}, "mask"),
        ({"has_extra": True}, "channels"),
        ({"reads_pictures": True}, "reads of pictures"),
        STEERED,
    ):
        found, why = choose_device(DeviceModule(), KIND, [PLAIN], 0.0, 0, **fields)
        assert found is None and reason in why


def test_a_run_ends_where_the_number_of_rows_changes() -> None:
    alone = RowPlan((1,), np.ones((1, 1), np.float32), False)
    plans = [PLAIN, PLAIN, alone, PLAIN]
    assert [end_of_rows(plans, first) for first in range(4)] == [2, 2, 3, 4]


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

    def advance(self, count: int, noise: NoiseSource) -> int:
        return 0

    def steps_done(self) -> int:
        return 0

    def latents(self) -> np.ndarray[Any, Any]:
        return np.zeros(1, np.float32)

    def hand_over(self) -> np.ndarray[Any, Any]:
        return np.zeros((1, 1), np.float32)

    def cancel(self) -> None:
        self.cancelled.set()


class Lagging(Run):
    """A device two evaluations behind what was queued, which goes on a little when it is asked."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.queued = self.done = self.reads = 0

    def advance(self, count: int, noise: NoiseSource) -> int:
        self.queued += count
        self.done = max(self.done, self.queued - 2)  # the native queue's depth
        return 0

    def steps_done(self) -> int:
        if self.queued == self.count:
            self.done = min(self.done + 1, self.count)
        return self.done

    def latents(self) -> np.ndarray[Any, Any]:
        self.reads += 1
        self.done = self.queued
        return np.full(1, self.queued, np.float32)


class Inputs:
    arrays: ClassVar[dict[str, Any]] = {}

    def use(self, plan: RowPlan) -> None: ...


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("seen", ["latents", "steps", "nothing"])
def test_who_counts_steps_makes_the_device_wait_no_more_than_who_sees_none(
    steps: int, seen: Seen
) -> None:
    run = Lagging(steps)
    program = build_program("euler", "normal", steps, SCHEDULE)
    told, lag = [], 0
    for k, latents in run_on_device(
        lambda rows, first, end, registers: run,
        np.zeros((1, 1, 4, 8, 8), np.float32),
        program,
        [PLAIN] * steps,
        {2: cast("UNetInputs", Inputs())},
        NoiseSource([1], (4, 8, 8)),
        StageClock(),
        seen,
        None,
    ):
        told.append((k, latents is not None))
        assert k < run.done  # nothing is told that has not run
        lag = max(lag, run.queued - k - 1)
    each = [(k, seen == "latents") for k in range(steps - 1)] if seen != "nothing" else []
    assert told == [*each, (steps - 1, True)]
    assert run.reads == (steps if seen == "latents" else 1)
    if seen == "steps" and steps > 2:
        assert lag == 2  # two more were queued when a step was told


def test_only_the_run_that_goes_on_is_cancelled() -> None:
    cancel, run = threading.Event(), Run()
    with _cancelling(cancel, run):
        cancel.set()
        assert run.cancelled.wait(10)
    late, ended = threading.Event(), Run()
    with _cancelling(late, ended):
        pass
    late.set()
    assert not ended.cancelled.wait(0.1)
