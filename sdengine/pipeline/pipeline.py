"""Pipeline: a request's straight line from conditioning and noise to pixels."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError
from sdengine.images.provenance import Provenance
from sdengine.images.result import Result, Step
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.decoding import decode, preview
from sdengine.pipeline.latents import latents_shape, noise_of
from sdengine.pipeline.loaded_networks import Networks
from sdengine.pipeline.row_plan import lay_out_rows
from sdengine.pipeline.trajectory import Evaluation, Trajectory
from sdengine.pipeline.unet_inputs import MicroConditioning, UNetInputs
from sdengine.prompt.conditioning import Conditioning, TextConditioner
from sdengine.prompt.kept_conditionings import KeptConditionings
from sdengine.prompt.plan import PromptOptions, PromptPlan
from sdengine.request.request import Request
from sdengine.samplers import (
    NoiseSchedule,
    SamplerOptions,
    SamplerProgram,
    build_program,
    resolve_names,
)

_log = logging.getLogger(__name__)
_MAX_NAMED = 20


@dataclass(frozen=True)
class Plan:
    """A checked request with everything that the host can work out before any network runs.

    Args:
        request: with its sampler and schedule by name.
        program: the sampler's numbers.
        prompts: the texts and where they hold.
        chunks: the images that are made together, by index; at least one chunk.
        warnings: what of the request cannot be done, in sentences.
    """

    request: Request
    program: SamplerProgram
    prompts: PromptPlan
    chunks: tuple[range, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Watch:
    """How a request is followed while it runs.

    Args:
        cancel: setting it ends the request within one step.
        preview_every: give every n-th step a preview; 0 for none.
        sees_steps: somebody looks at every step; if not, a device may run several at a time.

    Raises:
        ConfigError: preview_every is no integer from 0.
    """

    cancel: threading.Event | None = None
    preview_every: int = 0
    sees_steps: bool = True

    def __post_init__(self) -> None:
        if type(self.preview_every) is not int or self.preview_every < 0:
            raise ConfigError.for_field("preview_every", self.preview_every, "an integer from 0")


class Pipeline:
    """Make images of a bundle, one request at a time.

    Args:
        bundle: an open bundle.
        networks: of the bundle.
        provenance: what results say that made them.
        low_memory: each network's memory is freed once a request no longer needs it.
        max_chunks: the most chunks of a prompt that the networks take; None for any number.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        provenance: Provenance,
        low_memory: bool = False,
        max_chunks: int | None = None,
    ) -> None:
        self._manifest = bundle.manifest
        self._networks = networks
        self._provenance = provenance
        self._low_memory = low_memory
        self._conditioner = TextConditioner(bundle, max_chunks)
        noise_schedule = NoiseSchedule.from_config(bundle.manifest.architecture.scheduler)
        # What follows from a few fields of a request is often the same for the next one; nobody
        # writes to it.
        make = functools.partial(build_program, noise_schedule=noise_schedule)
        self._program = functools.lru_cache(maxsize=32)(make)
        self._prompts = functools.lru_cache(maxsize=8)(self._conditioner.plan)
        self._conditionings = KeptConditionings()
        self._row_plans = functools.lru_cache(maxsize=8)(lay_out_rows)

    def plan(self, request: Request) -> Plan:
        """Work out what needs no network.

        Raises:
            ConfigError: the sampler has no such name or option, or a prompt is not accepted.
        """
        sampler, schedule = resolve_names(request.sampler, request.schedule)
        if (sampler, schedule) != (request.sampler, request.schedule):
            request = replace(request, sampler=sampler, schedule=schedule)
        program = self._program(sampler, schedule, request.steps, options=_sampler_options(request))
        is_distilled = self._manifest.architecture.unet.guidance_embed_dim is not None
        prompts = self._prompts(
            request.prompts,
            request.negative_prompts,
            request.steps,
            PromptOptions(emphasis=request.emphasis, clip_skip=request.clip_skip),
            is_guided=request.uses_guidance and not is_distilled,
        )
        chunks = _chunks(request.batch_size, self._manifest.max_batch)
        warnings = _warnings(prompts)
        for line in warnings:
            _log.info("%s", line)
        return Plan(request, program, prompts, chunks, warnings)

    def forget_prompts(self) -> None:
        """Have the text encoders run again for prompts that were encoded before."""
        self._conditionings.clear()

    def run(self, plan: Plan, watch: Watch) -> Generator[Step, None, Result]:
        """Make the images, step by step.

        Yields:
            Every step, the last one with the result, which is returned as well.

        Raises:
            NonFiniteError: a network gave NaN or infinity.
            Cancelled: `watch.cancel` was set.
        """
        clock = StageClock()
        conditioning = self._condition(plan, clock)
        last, images = yield from self._steps(plan, watch, conditioning, clock)
        result = Result(
            tuple(images), plan.request, clock.timings(), self._provenance, plan.warnings
        )
        yield replace(last, result=result)
        return result

    def _condition(self, plan: Plan, clock: StageClock) -> Conditioning:
        kept = self._conditionings.find(plan.prompts.identity)
        if kept is not None:
            return kept
        size = (plan.request.height, plan.request.width)

        def get_encoder(network: str, rows: int) -> Module:
            module = self._networks.get(network, rows, *size, clock=clock)
            return clock.timed("text_encoder", module)

        conditioning = self._conditioner.encode(plan.prompts, get_encoder)
        self._conditionings.keep(plan.prompts.identity, conditioning)
        encoders = self._manifest.architecture.text_encoders
        self._done_with(*(encoder.network for encoder in encoders))
        return conditioning

    def _steps(
        self, plan: Plan, watch: Watch, conditioning: Conditioning, clock: StageClock
    ) -> Generator[Step, None, tuple[Step, list[NDArray[np.uint8]]]]:
        """Yield all steps but the last; return that one and the images."""
        images: list[NDArray[np.uint8]] = []
        *earlier, final = plan.chunks
        for chunk in earlier:
            step = yield from self._chunk_steps(plan, watch, conditioning, chunk, clock)
            yield from _held(step, clock)
            images += decode(step.latents, self._networks, clock)
        last = yield from self._chunk_steps(plan, watch, conditioning, final, clock)
        self._done_with("unet")
        images += decode(last.latents, self._networks, clock)
        self._done_with("vae_decoder")
        return last, images

    def _chunk_steps(
        self,
        plan: Plan,
        watch: Watch,
        conditioning: Conditioning,
        chunk: range,
        clock: StageClock,
    ) -> Generator[Step, None, Step]:
        """Yield the steps of some images but the last; return that one."""
        trajectory = self._trajectory(plan, watch, conditioning, chunk, clock)
        noise = noise_of(plan.request, chunk, self._manifest.architecture)
        evaluations = trajectory.run(noise, clock, watch.preview_every, watch.sees_steps)
        while True:
            evaluation = next(evaluations)
            is_last = evaluation.index + 1 == len(plan.program.t)
            if not (is_last or watch.sees_steps):
                continue
            step = self._step(plan, chunk, evaluation, clock)
            if is_last:
                return step
            yield from _held(step, clock)

    def _trajectory(
        self,
        plan: Plan,
        watch: Watch,
        conditioning: Conditioning,
        chunk: range,
        clock: StageClock,
    ) -> Trajectory:
        """Load the U-Net for a chunk's rows."""
        request, architecture = plan.request, self._manifest.architecture
        row_plans = self._row_plans(plan.prompts.steps, chunk)
        rows, size = len(row_plans[0].rows), (request.height, request.width)
        sequence = conditioning.prompt_embeds.shape[1]
        unet = self._networks.get("unet", rows, *size, sequence=sequence, clock=clock)
        inputs = UNetInputs(
            unet,
            architecture.unet,
            conditioning,
            latents_shape(architecture, rows, *size),
            request.guidance_scale,
            MicroConditioning.of(request),
        )
        return Trajectory(
            unet,
            inputs,
            plan.program,
            row_plans,
            request.guidance_scale,
            request.guidance_rescale,
            watch.cancel,
        )

    def _step(self, plan: Plan, chunk: range, evaluation: Evaluation, clock: StageClock) -> Step:
        program, k, clean = plan.program, evaluation.index, evaluation.clean
        count = len(program.t)
        return Step(
            index=plan.chunks.index(chunk) * count + k,
            total=len(plan.chunks) * count,
            timestep=float(program.t[k]),
            sigma=float(program.sigma[k]),
            latents=evaluation.latents,
            preview=None if clean is None else preview(clean, self._networks, clock),
        )

    def _done_with(self, *networks: str) -> None:
        if self._low_memory:
            self._networks.release(*networks)


def finish(
    steps: Generator[Step, None, Result], progress: Callable[[Step], None] | None = None
) -> Result:
    """Run a request to its end, show each step to `progress`, and return the result."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
        if progress is not None:
            progress(step)


def _warnings(prompts: PromptPlan) -> tuple[str, ...]:
    """Say what the prompts ask for and do not get; a hostile one may ask for thousands."""
    tags = prompts.not_applied
    more = [f"and {len(tags) - _MAX_NAMED} more"] if len(tags) > _MAX_NAMED else []
    shown = [tag if tag.isprintable() else ascii(tag) for tag in tags[:_MAX_NAMED]]
    named = [tag if len(tag) <= 120 else f"{tag[:117]}..." for tag in shown]
    return tuple(
        f"prompt: {tag} is not applied: this release loads no such networks, and the picture is "
        "made without."
        for tag in named + more
    )


def _held(step: Step, clock: StageClock) -> Generator[Step, None, None]:
    """Yield a step without counting the time for which the caller holds it."""
    clock.pause()
    yield step
    clock.resume()


def _sampler_options(request: Request) -> SamplerOptions:
    names = [field.name for field in fields(SamplerOptions)]
    return SamplerOptions(**{name: getattr(request, name) for name in names})


def _chunks(count: int, size: int) -> tuple[range, ...]:
    return tuple(range(first, min(first + size, count)) for first in range(0, count, size))
