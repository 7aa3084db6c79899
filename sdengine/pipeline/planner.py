"""Planner: what a request needs, worked out before any network runs."""

from __future__ import annotations

import functools
import logging
from dataclasses import fields, replace

from sdengine.adapters.weight_set import WeightSet
from sdengine.bundle.reader import Bundle
from sdengine.pipeline.control_plan import plan_controls, require_controls
from sdengine.pipeline.encoding import ENCODER
from sdengine.pipeline.hires import second_request, two_passes, with_names
from sdengine.pipeline.image_prompts import PictureReader
from sdengine.pipeline.loaded_networks import Networks
from sdengine.pipeline.picture_start import (
    computed_size,
    picture_warnings,
    require_pictures,
)
from sdengine.pipeline.plan import Plan
from sdengine.pipeline.regions import require_regions
from sdengine.pipeline.request_weights import RequestWeights, few_step_notes
from sdengine.pipeline.tiled_unet import tile_grid, tile_warnings, with_tiles
from sdengine.pipeline.tiny_autoencoder import DECODER, require_tiny
from sdengine.pipeline.tiny_autoencoder import ENCODER as TINY_ENCODER
from sdengine.prompt.conditioning import TextConditioner
from sdengine.prompt.embedding_library import EmbeddingLibrary, unused_embeddings
from sdengine.prompt.plan import PromptOptions, PromptPlan
from sdengine.request.request import Request
from sdengine.samplers import NoiseSchedule, SamplerOptions, build_program, resolve_names

_log = logging.getLogger(__name__)
_MAX_NAMED = 20
_NO_INTERVAL = (
    "guidance_interval: it is not applied: this bundle's U-Net was distilled to be told the "
    "guidance scale, and no step computes an unconditional half that could be left out."
)


class Planner:
    """Plan the requests for a bundle, and hold what prompts and requests may name.

    Args:
        bundle: an open bundle.
        networks: of the bundle.
        max_chunks: the most chunks of a prompt that the networks take; None for any number.
    """

    def __init__(self, bundle: Bundle, networks: Networks, max_chunks: int | None = None) -> None:
        self._manifest = bundle.manifest
        self._can_wrap = networks.can_wrap
        self.conditioner = TextConditioner(bundle, max_chunks)
        self.library = EmbeddingLibrary(self.conditioner.planner)
        self.weights = RequestWeights(bundle)
        self.pictures = PictureReader(bundle, networks)
        noise_schedule = NoiseSchedule.from_config(bundle.manifest.architecture.scheduler)
        # What follows from a few fields of a request is often the same for the next one; nobody
        # writes to it.
        make = functools.partial(build_program, noise_schedule=noise_schedule)
        self._program = functools.lru_cache(maxsize=32)(make)
        self._prompts = functools.lru_cache(maxsize=8)(self.conditioner.plan)

    def plan(self, request: Request) -> Plan:
        """Work out what needs no network.

        Raises:
            ConfigError: the sampler has no such name or option, or a prompt is not accepted.
        """
        sampler, schedule = resolve_names(request.sampler, request.schedule)
        if (sampler, schedule) != (request.sampler, request.schedule):
            request = replace(request, sampler=sampler, schedule=schedule)
        request = with_names(request)
        require_pictures(request, self._manifest)
        require_controls(request, self._manifest)
        if request.decoder == "tiny":
            require_tiny(self._manifest, DECODER, "decoder")
        request = with_tiles(request, self._manifest)
        request, weights, told = self.weights.of(request)
        plan = self._plan_pass(request, weights)
        if request.hires is not None:
            second = second_request(request, self._manifest)
            plan = two_passes(plan, self._plan_pass(second, weights))
        used = tuple(dict.fromkeys(e for one in plan.passes for e in one.prompts.embeddings))
        warnings = (*told, *plan.warnings, *unused_embeddings(request, used))
        notes = few_step_notes(request, weights)
        if weights.model is not None:
            warnings += tuple(f"model: {note}." for note in weights.model.notes)
        warnings += tile_warnings(request, [one.tiles for one in plan.passes])
        if request.embeddings is not None or self.library.embeddings or used:
            request = replace(request, embeddings=used)
        plan = replace(plan, request=request, warnings=warnings, notes=notes)
        for line in (*plan.warnings, *plan.notes):
            _log.info("%s", line)
        return plan

    def _plan_pass(self, request: Request, weights: WeightSet) -> Plan:
        sampler, schedule = request.sampler, request.schedule
        size = computed_size(request, self._manifest)
        tiles = tile_grid(request, size, self._manifest, wraps=self._can_wrap)
        count, steps = request.num_steps_run, request.num_schedule_steps
        first = steps - count if request.starts_from_picture else None
        options = _sampler_options(request)
        program = self._program(sampler, schedule, steps, options=options, first=first)
        is_distilled = self._manifest.architecture.unet.guidance_embed_dim is not None
        inside = self.weights.embeddings(weights)
        embeddings = self.library.resolve(request.embeddings, inside)
        prompts = self._prompts(
            request.prompts,
            request.negative_prompts,
            count,
            PromptOptions(emphasis=request.emphasis, clip_skip=request.clip_skip),
            is_guided=request.uses_guidance and not is_distilled,
            embeddings=embeddings,
            skipped=self.library.skipped if request.embeddings is None else (),
        )
        cell = self._manifest.architecture.vae.downscale
        require_regions(request, prompts.rows(0), size, cell)
        chunks = _chunks(request.batch_size, self._manifest.max_batch)
        # A distilled U-Net is told the scale instead of being run twice.
        ignores_interval = is_distilled and not request.is_guided_throughout
        guided = range(count) if ignores_interval else request.guided_steps
        said = [_NO_INTERVAL] if ignores_interval else []
        controls, idle = plan_controls(request, self._manifest, len(program.t))
        adapters, without_effect = self.pictures.plan(request, len(program.t), prompts)
        said += [*idle, *without_effect]
        warnings = (*_warnings(prompts), *picture_warnings(request), *said)
        coders = _coders(request, self._manifest.architecture.task)
        return Plan(
            request,
            size,
            program,
            prompts,
            chunks,
            guided,
            warnings,
            tuple(controls),
            tuple(adapters),
            coders,
            tiles,
            weights,
            self._can_wrap,
        )


def _warnings(prompts: PromptPlan) -> tuple[str, ...]:
    """Say what the prompts ask for and do not get; a hostile one may ask for thousands."""
    tags = prompts.not_applied
    more = [f"and {len(tags) - _MAX_NAMED} more"] if len(tags) > _MAX_NAMED else []
    shown = [tag if tag.isprintable() else ascii(tag) for tag in tags[:_MAX_NAMED]]
    named = [tag if len(tag) <= 120 else f"{tag[:117]}..." for tag in shown]
    return (
        tuple(
            f"prompt: {tag} is not applied, and the picture is made without: nothing of that name "
            "was given, or the prompt is not the first of its batch. Folders are: Engine.add_loras "
            "or --loras FOLDER, add_hypernetworks or --hypernetworks FOLDER."
            for tag in named + more
        )
        + tuple(prompts.skipped)[:_MAX_NAMED]
    )


def _coders(request: Request, task: str) -> tuple[str, ...]:
    """Return the networks that encode and decode beside the VAE decoder."""
    reads_picture = request.image is not None or task == "inpainting"
    encoder = TINY_ENCODER if request.encode == "tiny" else ENCODER
    decoders = (DECODER,) if request.decoder == "tiny" else ()
    return (encoder, *decoders) if reads_picture else decoders


def _sampler_options(request: Request) -> SamplerOptions:
    names = [field.name for field in fields(SamplerOptions)]
    return SamplerOptions(**{name: getattr(request, name) for name in names})


def _chunks(count: int, size: int) -> tuple[range, ...]:
    return tuple(range(first, min(first + size, count)) for first in range(0, count, size))
