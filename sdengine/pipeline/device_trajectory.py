"""Device trajectory: a device runs the sampler's steps itself, without the host between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from sdengine.backends.base import Module
from sdengine.backends.device_protocols import (
    Array,
    DeviceRun,
    RunsTrajectories,
    TrajectoryKind,
    runs_trajectories,
)
from sdengine.errors import NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.turns import check_cancelled
from sdengine.pipeline.unet_inputs import UNetInputs
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

# What a request's caller wants to see of every evaluation but the last: its latents, that it has
# run, or nothing.
Seen = Literal["latents", "steps", "nothing"]

_POLL_SECONDS = 0.02
_STEP_POLL_SECONDS = 0.001


def choose_device(
    unet: Module,
    kind: TrajectoryKind,
    row_plans: Sequence[RowPlan],
    guidance_rescale: float,
    clean_every: int,
    *,
    keeps_part: bool = False,
    has_extra: bool = False,
    is_steered: bool = False,
    is_tiled: bool = False,
    reads_pictures: bool = False,
) -> tuple[RunsTrajectories | None, str]:
    """Decide where a trajectory's steps run.

    Args:
        unet: the loaded U-Net.
        kind: what the trajectory needs.
        row_plans: of every step.
        guidance_rescale, clean_every: of the request; more than 0 needs each prediction on the
            host.
        keeps_part: a mask keeps a part of a picture.
        has_extra: the U-Net reads more than latents.
        is_steered: controls run at some of the steps.
        is_tiled: the U-Net runs on tiles of the latents, or on latents that are shifted.
        reads_pictures: of pictures beside the prompt it reads at some of the steps.

    Returns:
        The U-Net as what runs them, or None and why the host does.
    """
    if not runs_trajectories(unet):
        return None, "the backend's networks run one by one"
    if clean_every > 0:
        return None, "previews are made from each prediction"
    if is_tiled:
        return None, "the host cuts or shifts what the U-Net reads"
    if has_extra:
        return None, "the U-Net reads more channels than the device scales"
    if is_steered:
        return None, "controls run between its steps, and the host sums what they give"
    if reads_pictures:
        return None, "the host says at each step what the U-Net reads of pictures"
    if keeps_part:
        return None, "a mask keeps a part of a picture in each prediction"
    if guidance_rescale > 0:
        return None, "guidance_rescale looks at each prediction as a whole"
    if not all(plan.is_plain for plan in row_plans):
        return None, "prompts joined by AND weigh more than two rows an image"
    refusal = unet.refuses(kind)
    return (None, refusal) if refusal else (unet, "")


def run_on_device(
    begin: Callable[[int, int, int, Array], DeviceRun],
    registers: Array,
    program: SamplerProgram,
    row_plans: Sequence[RowPlan],
    inputs: Mapping[int, UNetInputs],
    noise: NoiseSource,
    clock: StageClock,
    seen: Seen,
    cancel: threading.Event | None,
) -> Iterator[tuple[int, Array | None]]:
    """Run a trajectory.

    Where steps differ in their number of rows, the U-Net for one number hands over to that for the
    other; of guidance inside an interval there are at most two such steps.

    Args:
        begin: begins a run of the U-Net for a number of rows, before an evaluation, up to another,
            with registers [R,B,C,h,w].
        registers: those that the trajectory starts from.
        program: the sampler's numbers.
        row_plans: of every step.
        inputs: the U-Net's by its number of rows, on the host.
        noise: draws for the images.
        clock: where time is counted.
        seen: of every evaluation.
        cancel: setting it ends the trajectory before its next evaluation.

    Yields:
        Number and latents of evaluations: of the last one, and of each where they are seen. Where
        only steps are seen, each is told once it has run, without latents and without a wait: the
        device has the next ones queued already.

    Raises:
        NonFiniteError: an evaluation gave NaN or infinity.
        Cancelled: the caller cancelled.
    """
    total, told, last = len(program.t), 0, 0
    used: RowPlan | None = None
    run: DeviceRun | None = None
    plans = [row_plans[int(step)] for step in program.step]
    for first, end in segments(plans, one_by_one=seen != "nothing"):
        check_cancelled(cancel)
        plan = row_plans[int(program.step[first])]
        with clock.stage("unet", calls=end - first):
            if run is None or used is None or len(plan.rows) != len(used.rows):
                registers = registers if run is None else _named(run.hand_over, last, total)
                last = end_of_rows(plans, first)
                run, used = begin(len(plan.rows), first, last, registers), None
            if plan is not used:
                inputs[len(plan.rows)].use(plan)
                run.use(inputs[len(plan.rows)].arrays)
                used = plan
            if cancel is None or end - first == 1:  # one evaluation ends soon enough by itself
                others_ns = run.advance(end - first, noise)
            else:
                with _cancelling(cancel, run):
                    others_ns = run.advance(end - first, noise)
            latents = (
                _named(run.latents, last, total) if seen == "latents" and end < total else None
            )
        clock.add("unet", -others_ns, 0)
        if latents is not None:
            yield end - 1, latents
        if seen == "steps":
            done = min(run.steps_done(), total - 1)
            yield from ((k, None) for k in range(told, done))
            told = max(told, done)
    assert run is not None
    while seen == "steps" and told < total - 1:
        with clock.stage("unet", calls=0):
            while run.steps_done() <= told:
                check_cancelled(cancel)
                time.sleep(_STEP_POLL_SECONDS)
        yield told, None
        told += 1
    with clock.stage("unet", calls=0):
        latents = _named(run.latents, last, total)
    yield total - 1, latents


def end_of_rows(plans: Sequence[RowPlan], first: int) -> int:
    """Return the first evaluation from one on that has another number of rows, or their count."""
    rows = len(plans[first].rows)
    return next((k for k in range(first, len(plans)) if len(plans[k].rows) != rows), len(plans))


def segments(plans: Sequence[RowPlan], one_by_one: bool) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the evaluations between which the host has nothing to do."""
    first = 0
    for k in range(1, len(plans) + 1):
        if one_by_one or k == len(plans) or plans[k] is not plans[first]:
            yield first, k
            first = k


def _named(read: Callable[[], Array], end: int, total: int) -> Array:
    """Return what a run has computed, or say which network gave no numbers.

    Args:
        read: waits for it.
        end: of the run's evaluations: it knows of no more.
        total: of the trajectory's.
    """
    try:
        return read()
    except NonFiniteError as error:
        told = str(error).removeprefix("unet: ").replace(f" of {end} ", f" of {total} ")
        raise NonFiniteError.at("unet", told) from None


@contextmanager
def _cancelling(cancel: threading.Event, run: DeviceRun) -> Iterator[None]:
    """Pass on what the caller sets while the block is in native code."""
    guard, done = threading.Lock(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if cancel.wait(_POLL_SECONDS):
                with guard:
                    if not done.is_set():
                        run.cancel()
                return

    threading.Thread(target=watch, name="sdengine-cancel", daemon=True).start()
    try:
        yield
    finally:
        with guard:
            done.set()
