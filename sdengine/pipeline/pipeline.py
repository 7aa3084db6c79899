"""Pipeline: a request's straight line from conditioning and noise to pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Array, Module
from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.bundle.reader import Bundle
from sdengine.images.provenance import Provenance
from sdengine.images.result import Result, Step
from sdengine.inputs.depth import depth_channel
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.control_plan import read_hint
from sdengine.pipeline.encoding import ENCODER
from sdengine.pipeline.hires import cut, enlarged
from sdengine.pipeline.latents import latents_shape, noise_of
from sdengine.pipeline.loaded_controls import load_steerings
from sdengine.pipeline.loaded_networks import Networks, WeightedNetworks
from sdengine.pipeline.picture_start import (
    masked_picture,
    starting_picture,
)
from sdengine.pipeline.plan import Plan, Prepared, Watch
from sdengine.pipeline.planner import Planner
from sdengine.pipeline.previews import preview
from sdengine.pipeline.regions import region_maps, region_shares
from sdengine.pipeline.row_plan import lay_out_rows
from sdengine.pipeline.seamless import decode_seamless
from sdengine.pipeline.tiled_unet import tiled_unet
from sdengine.pipeline.tiny_autoencoder import DECODER
from sdengine.pipeline.tiny_autoencoder import ENCODER as TINY_ENCODER
from sdengine.pipeline.trajectory import Evaluation, Trajectory
from sdengine.pipeline.turns import check_cancelled
from sdengine.pipeline.unet_inputs import MicroConditioning, UNetInputs
from sdengine.prompt.conditioning import Conditioning
from sdengine.prompt.kept_conditionings import KeptConditionings


class Pipeline:
    """Make images of a bundle, one request at a time.

    Args:
        bundle: an open bundle.
        networks: of the bundle.
        planner: of the bundle's requests.
        provenance: what results say that made them.
        low_memory: each network's memory is freed once a request no longer needs it.
    """

    def __init__(
        self,
        bundle: Bundle,
        networks: Networks,
        planner: Planner,
        provenance: Provenance,
        low_memory: bool = False,
    ) -> None:
        self._manifest = bundle.manifest
        self._task = bundle.manifest.architecture.task
        self._networks = networks
        self._provenance = provenance
        self._low_memory = low_memory
        self._planner = planner
        self._conditionings = KeptConditionings()
        self._row_plans = functools.lru_cache(maxsize=8)(lay_out_rows)

    def forget_prompts(self) -> None:
        """Have the text encoders run again for prompts that were encoded before."""
        self._conditionings.clear()
        self._planner.pictures.forget()

    def run(self, plan: Plan, watch: Watch) -> Generator[Step, None, Result]:
        """Make the images, step by step.

        Yields:
            Every step, the last one with the result, which is returned as well.

        Raises:
            NonFiniteError: a network gave NaN or infinity.
            Cancelled: `watch.cancel` was set.
        """
        clock = StageClock()
        prepared = self._prepare(plan, clock)
        if plan.second is None:
            last, images = yield from self._steps(plan, watch, prepared, clock)
        else:
            prepared = yield from self._first_pass(plan, plan.second, watch, prepared, clock)
            last, images = yield from self._steps(plan.second, watch, prepared, clock)
            images = cut(plan.second.request, images)
        if prepared.picture is not None:
            images = prepared.picture.finished(plan.request, images)
        result = Result(
            tuple(images),
            plan.request,
            clock.timings(),
            self._provenance_of(plan, clock),
            plan.warnings,
            plan.used,
            (*plan.notes, *(_band_note(*one) for one in clock.bands)),
        )
        yield replace(last, result=result)
        return result

    def _condition(self, plan: Plan, clock: StageClock) -> Conditioning:
        encoders = [one.network for one in self._manifest.architecture.text_encoders]
        key = (plan.prompts.identity, *(plan.weights.identity(network) for network in encoders))
        kept = self._conditionings.find(key)
        if kept is not None:
            return kept
        width, height = plan.size
        networks = self._networks_of(plan)

        def get_encoder(network: str, rows: int) -> Module:
            module = networks.get(network, rows, height, width, clock=clock)
            return clock.timed("text_encoder", module)

        conditioning = self._planner.conditioner.encode(plan.prompts, get_encoder, plan.weights)
        self._conditionings.keep(key, conditioning)
        self._done_with(*encoders)
        return conditioning

    def _prepare(self, plan: Plan, clock: StageClock) -> Prepared:
        """Run what a request's trajectories have in common."""
        conditioning = self._condition(plan, clock)
        request = plan.request
        networks = self._networks_of(plan)
        picture = left_out = extra = None
        if request.image is not None and request.image.is_given:
            picture = starting_picture(request, plan.size, networks, clock)
        if self._task == "inpainting":
            left_out = masked_picture(picture, request, plan.size, networks, clock)
        elif request.depth is not None:
            shape = latents_shape(self._manifest.architecture, 1, *plan.size[::-1])
            extra = depth_channel(request.depth, shape[2], shape[3], invert=request.depth_invert)
        self._done_with(ENCODER, TINY_ENCODER)
        hints = tuple(read_hint(one, request, plan.size, picture) for one in plan.controls)
        prompts = self._planner.pictures.read(plan.ip_adapters, clock)
        self._done_with(IMAGE_ENCODER)
        regions = None
        if request.regions:
            cell = self._manifest.architecture.vae.downscale
            part = None if picture is None else picture.computed_part
            regions = region_maps(request, plan.size, cell, part)
        return Prepared(
            conditioning,
            picture,
            left_out,
            extra,
            hints,
            image_prompts=prompts,
            regions=regions,
            contexts=plan.weights.contexts(conditioning.prompt_embeds),
        )

    def _steps(
        self,
        plan: Plan,
        watch: Watch,
        prepared: Prepared,
        clock: StageClock,
    ) -> Generator[Step, None, tuple[Step, list[NDArray[np.uint8]]]]:
        """Yield all steps but the last; return that one and the images."""
        images: list[NDArray[np.uint8]] = []
        *earlier, final = plan.chunks
        for chunk in earlier:
            step = yield from self._chunk_steps(plan, watch, prepared, chunk, clock)
            yield from _held(step, clock)
            images += self._decode(plan, step, clock)
        last = yield from self._chunk_steps(plan, watch, prepared, final, clock)
        self._done_with("unet", *plan.control_networks)
        images += self._decode(plan, last, clock)
        self._done_with("vae_decoder", DECODER)
        return last, images

    def _first_pass(
        self, plan: Plan, second: Plan, watch: Watch, prepared: Prepared, clock: StageClock
    ) -> Generator[Step, None, Prepared]:
        """Yield all steps of a first pass; return what the second one starts from."""
        self._condition(second, clock)  # before the U-Net takes its memory
        latents = []
        for chunk in plan.chunks:
            step = yield from self._chunk_steps(plan, watch, prepared, chunk, clock)
            assert step.latents is not None  # it is the last one of its images
            latents.append(step.latents)
            yield from _held(step, clock)
        self._done_with("unet", *plan.control_networks)
        check_cancelled(watch.cancel)
        given = enlarged(plan.request, latents, second.size, self._networks_of(plan), clock)
        self._done_with("vae_decoder")
        return replace(self._prepare(second, clock), given=given)

    def _decode(self, plan: Plan, step: Step, clock: StageClock) -> list[NDArray[np.uint8]]:
        assert step.latents is not None  # it is the last one of its images
        seamless, decoder = plan.request.seamless, plan.request.decoder
        networks = self._networks_of(plan)
        return decode_seamless(step.latents, seamless, networks, clock, decoder)

    def _chunk_steps(
        self,
        plan: Plan,
        watch: Watch,
        prepared: Prepared,
        chunk: range,
        clock: StageClock,
    ) -> Generator[Step, None, Step]:
        """Yield the steps of some images but the last; return that one."""
        request, architecture = plan.request, self._manifest.architecture
        make_noise = functools.partial(noise_of, request, plan.size, chunk, architecture)
        noise = make_noise()
        start = known = None
        if (picture := prepared.picture) is not None:
            # Inpainting models that start from noise never see the latents, and draw none.
            draws = request.starts_from_picture or self._task != "inpainting"
            latents = picture.latents(request, noise, len(chunk), draws)
            known = picture.known(request, latents, self._task)
            if request.starts_from_picture:
                start = picture.start(request, latents, make_noise)
        elif prepared.given:
            start = prepared.given[plan.chunks.index(chunk)]
        extra = prepared.depth
        if prepared.masked is not None:
            extra = prepared.masked.channels(request, make_noise, len(chunk))
        trajectory = self._trajectory(plan, watch, prepared, extra, chunk, clock)
        evaluations = trajectory.run(noise, clock, watch.preview_every, watch.seen, start, known)
        while True:
            evaluation = next(evaluations)
            is_last = evaluation.index + 1 == len(plan.program.t)
            if not is_last and watch.seen == "nothing":
                continue
            step = self._step(plan, watch, chunk, evaluation, clock)
            if is_last:
                return step
            yield from _held(step, clock)

    def _trajectory(
        self,
        plan: Plan,
        watch: Watch,
        prepared: Prepared,
        extra: Array | None,
        chunk: range,
        clock: StageClock,
    ) -> Trajectory:
        """Load the U-Net, and controls, for each number of rows that a chunk's steps have."""
        request = plan.request
        row_plans = self._row_plans(plan.prompts.steps, chunk, plan.guided)
        counts = dict.fromkeys(len(rows.rows) for rows in row_plans)
        steerings = load_steerings(plan, prepared, row_plans, self._networks_of(plan), clock)
        shares = None
        if prepared.regions is not None:
            parts = [len(plan.prompts.rows(0)[image][1]) for image in chunk]
            shares = region_shares(prepared.regions, request.region_base, parts, max(parts))
        return Trajectory(
            {rows: self._unet_inputs(plan, prepared, extra, rows, clock) for rows in counts},
            plan.program,
            row_plans,
            request.guidance_scale,
            request.guidance_rescale,
            watch.cancel,
            None if plan.tiles is not None else next(iter(steerings), None),
            tiled_unet(plan, chunk, prepared.hints, extra, steerings),
            shares,
        )

    def _unet_inputs(
        self,
        plan: Plan,
        prepared: Prepared,
        extra: Array | None,
        rows: int,
        clock: StageClock,
    ) -> UNetInputs:
        request, architecture = plan.request, self._manifest.architecture
        size, tile = plan.unet_size[::-1], None
        if plan.tiles is not None:
            tile = None if plan.tiles.is_whole else plan.unet_size
            extra = None if extra is None else plan.tiles.tiles[0].of(extra)
        conditioning = prepared.conditioning
        sequence = conditioning.prompt_embeds.shape[1]
        unet = self._networks_of(plan).get(
            "unet", rows, *size, sequence=sequence, clock=clock, wraps=plan.unet_wraps
        )
        return UNetInputs(
            unet,
            architecture.unet,
            conditioning,
            latents_shape(architecture, rows, *size),
            request.guidance_scale,
            MicroConditioning.of(request, tile),
            extra,
            prepared.image_prompts,
            prepared.contexts,
        )

    def _step(
        self, plan: Plan, watch: Watch, chunk: range, evaluation: Evaluation, clock: StageClock
    ) -> Step:
        program, k, clean = plan.program, evaluation.index, evaluation.clean
        count = len(program.t)
        shown = None
        if clean is not None:
            bands = dict(clock.bands)
            seamless = plan.request.seamless
            shown = preview(clean, watch.preview, self._networks_of(plan), clock, seamless)
            clock.bands = bands  # what a preview was computed in makes no difference to the picture
        return Step(
            index=plan.steps_before + plan.chunks.index(chunk) * count + k,
            total=plan.steps_before + len(plan.chunks) * count + plan.steps_after,
            timestep=float(program.t[k]),
            sigma=float(program.sigma[k]),
            latents=evaluation.latents,
            preview=shown,
        )

    def _provenance_of(self, plan: Plan, clock: StageClock) -> Provenance:
        bands = tuple(sorted((*place, limit) for place, limit in clock.bands.items()))
        found, model = replace(self._provenance, vae_bands=bands), plan.weights.model
        if model is None:
            return found
        return replace(found, model=model.name, model_hash=model.sha256)

    def _networks_of(self, plan: Plan) -> WeightedNetworks:
        return WeightedNetworks(self._networks, plan.weights)

    def _done_with(self, *networks: str) -> None:
        if self._low_memory:
            self._networks.release(*networks)


def _band_note(network: str, width: int, height: int) -> str:
    return f"{network} at {width}x{height} was computed in bands, which rounds differently."


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


def _held(step: Step, clock: StageClock) -> Generator[Step, None, None]:
    """Yield a step without counting the time for which the caller holds it."""
    clock.pause()
    yield step
    clock.resume()
