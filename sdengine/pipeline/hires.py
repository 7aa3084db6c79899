"""Hires fix: the second pass of a request, from the enlarged result of the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.manifest import Manifest
from sdengine.bundle.reader import check_size
from sdengine.errors import ConfigError, UnsupportedShapeError
from sdengine.inputs.control_picture import control_pixels, resized_control
from sdengine.inputs.interpolation import interpolated
from sdengine.inputs.picture import Picture, Pixels
from sdengine.inputs.recorded import Recorded
from sdengine.inputs.resize import nearest, padded, resized
from sdengine.inputs.upscaler import Upscaler, UpscalerFile, open_upscaler, upscaled_to
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.encoding import ENCODER, encoded
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.picture_start import computed_size, exceeds
from sdengine.pipeline.plan import Plan
from sdengine.pipeline.regions import cut_regions
from sdengine.pipeline.seamless import decode_seamless
from sdengine.request.control import Control
from sdengine.request.hires_fields import LATENT_UPSCALERS, LEAST_LATENT_STRENGTH
from sdengine.request.picture_fields import HIRES_FIELDS
from sdengine.request.region import Region
from sdengine.request.request import FIELDS, Request
from sdengine.samplers import SAMPLERS, resolve_names

Array = NDArray[np.float32]


def with_names(request: Request) -> Request:
    """Return a request whose second pass names its sampler and schedule where it has its own.

    Raises:
        ConfigError: a name is unknown; the message names the second pass's field.
    """
    own = request.hires_sampler, request.hires_schedule
    if own == (None, None):
        return request
    try:
        names = resolve_names(own[0] or request.sampler, own[1], request.schedule)
    except ConfigError as error:
        raise ConfigError(f"hires_{error}") from None
    sampler = None if own[0] is None else names[0]
    return replace(request, hires_sampler=sampler, hires_schedule=names[1])


def second_request(request: Request, manifest: Manifest) -> Request:
    """Return the image to image request that the second pass is, its picture yet to be made.

    Args:
        request: with `hires`, as `with_names` returns it.
        manifest: of the bundle.

    Raises:
        ConfigError: the bundle cannot encode what is enlarged, or hires_model is no upscaler.
        BackendUnavailableError: what runs hires_model is not installed.
        UnsupportedShapeError: it does not run the size.
    """
    width, height = request.hires_size(request.width, request.height)
    is_latent = request.hires_upscaler in LATENT_UPSCALERS
    is_tiled = request.tile_size is not None and exceeds(request.tile_size, width, height)
    if is_latent and not is_tiled:
        try:
            check_size(width, height, manifest)  # of pixels any size is padded
        except UnsupportedShapeError as error:
            raise UnsupportedShapeError(
                f"hires: {str(error).removeprefix('width, height: ')}"
            ) from None
    elif not is_latent and ENCODER not in manifest.networks:
        names = ", ".join(LATENT_UPSCALERS)
        raise ConfigError.for_field(
            "hires_upscaler", request.hires_upscaler, f"{names}: the bundle has no VAE encoder"
        )
    if request.hires_model is not None:
        _upscaler(request)
    usual = {name: FIELDS[name].default for name in ("hires", *HIRES_FIELDS)}
    _require_whole(request, width, height)
    made = replace(
        request,
        **usual,
        image=Recorded("0" * 64, size=(width, height)),
        width=width,
        height=height,
        steps=request.hires_steps or request.steps,
        strength=request.hires_strength,
        strength_rule="exact",
        **_own(request),
        controls=_controls(request, (width, height), manifest),
        regions=_regions(request, (width, height), manifest),
    )
    needed = computed_size(made, manifest)
    if is_latent and needed != (width, height):
        shown = "{}x{}, in tiles the next that enlarged latents have is {}x{}"
        raise UnsupportedShapeError(f"hires: {shown.format(width, height, *needed)}.")
    for axis, own, side in zip("xy", (width, height), needed, strict=True):
        if axis in request.seamless and own != side:
            raise UnsupportedShapeError(
                f"hires: {width}x{height} is computed at {needed[0]}x{needed[1]}, and its edges "
                "would not meet; with seamless give a factor or size that needs no padding."
            )
    return made


def _require_whole(request: Request, width: int, height: int) -> None:
    """Refuse, before any work, a second pass of a seamless picture that would cut edges that meet.

    Raises:
        ConfigError: the size has other proportions along an axis that meets.
    """
    cover = request.hires_cover(request.width, request.height)
    for axis, own, covered in zip("xy", (width, height), cover, strict=True):
        if axis in request.seamless and own != covered:
            raise ConfigError.for_field(
                "hires", f"{width}x{height}",
                "a factor, or a size in the picture's own proportions, with seamless: of another "
                "a part is cut away",
            )  # fmt: skip


def _own(request: Request) -> dict[str, Any]:
    """Return the fields of a second pass that are not the first one's."""
    named = {
        "sampler": request.hires_sampler,
        "schedule": request.hires_schedule,
        "prompt": request.hires_prompt,
        "negative_prompt": request.hires_negative_prompt,
    }
    found: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    before, after = (SAMPLERS[name].options for name in (
        request.sampler, found.get("sampler", request.sampler)))  # fmt: skip
    return found | {name: None for name in before if name not in after}


def two_passes(first: Plan, second: Plan) -> Plan:
    """Return the plan of a request that goes on with another one."""
    counts = [len(one.chunks) * len(one.program.t) for one in (first, second)]
    return replace(
        first,
        steps_after=counts[1],
        second=replace(second, steps_before=counts[0]),
        warnings=tuple(
            dict.fromkeys((*first.warnings, *second.warnings, *_warnings(first.request)))
        ),
    )


def enlarged(
    request: Request,
    latents: Sequence[Array],
    size: tuple[int, int],
    networks: WeightedNetworks,
    clock: StageClock,
) -> tuple[Array, ...]:
    """Return what the second pass starts from.

    Args:
        request: with `hires`.
        latents: [B,C,h,w] fp32 of each chunk's images after the first pass.
        size: width and height that the second pass is computed at.
        networks: of the open bundle.
        clock: where time is counted.

    Raises:
        NonFiniteError: the decoder or the encoder gave NaN or infinity.
    """
    if request.hires_upscaler not in LATENT_UPSCALERS:
        return tuple(_by_pixels(request, one, size, networks, clock) for one in latents)
    cell = _cell(networks.bundle.manifest)
    cover = request.hires_cover(request.width, request.height)
    columns, rows = cover[0] // cell, cover[1] // cell
    left, above = (_first(*sides, cell) // cell for sides in zip(cover, size, strict=True))
    part = np.s_[..., above : above + size[1] // cell, left : left + size[0] // cell]
    kind = LATENT_UPSCALERS[request.hires_upscaler]
    with clock.stage("upscale"):
        return tuple(
            np.ascontiguousarray(interpolated(one, rows, columns, kind, request.seamless)[part])
            for one in latents
        )


def cut(request: Request, images: list[Pixels]) -> list[Pixels]:
    """Return images [H,W,3] of the second pass without what padded them."""
    return [np.ascontiguousarray(one[: request.height, : request.width]) for one in images]


def _corner(request: Request, size: tuple[int, int], manifest: Manifest) -> tuple[int, int]:
    """Return left and top of the second pass in what the enlarged first one covers."""
    cover = request.hires_cover(request.width, request.height)
    cell = _cell(manifest) if request.hires_upscaler in LATENT_UPSCALERS else 1
    left, top = (_first(*sides, cell) for sides in zip(cover, size, strict=True))
    return left, top


def _regions(request: Request, size: tuple[int, int], manifest: Manifest) -> tuple[Region, ...]:
    """Return a request's regions; where the second pass is cut, they are cut alike."""
    cover = request.hires_cover(request.width, request.height)
    if cover == size:
        return request.regions
    return cut_regions(request, cover, size, _corner(request, size, manifest))


def _controls(request: Request, size: tuple[int, int], manifest: Manifest) -> tuple[Control, ...]:
    """Return a request's controls; where the second pass is cut, their pictures are cut alike."""
    cover = request.hires_cover(request.width, request.height)
    if cover == size:
        return request.controls
    left, top = _corner(request, size, manifest)
    found = []
    for control in request.controls:
        pixels = resized_control(control_pixels(control.image), *cover, control.resize)
        part = np.ascontiguousarray(pixels[top : top + size[1], left : left + size[0]])
        found.append(replace(control, image=Picture(part, control.image.sha256), resize="stretch"))
    return tuple(found)


def _first(cover: int, size: int, cell: int) -> int:
    """Return where the middle of a side begins, in whole cells."""
    return (cover // cell - size // cell) // 2 * cell


def _cell(manifest: Manifest) -> int:
    return manifest.architecture.vae.downscale


def _by_pixels(
    request: Request,
    latents: Array,
    size: tuple[int, int],
    networks: WeightedNetworks,
    clock: StageClock,
) -> Array:
    width, height = request.hires_size(request.width, request.height)
    mode = "crop" if isinstance(request.hires, tuple) else "stretch"
    found = []
    for pixels in decode_seamless(latents, request.seamless, networks, clock):
        with clock.stage("upscale"):
            if request.hires_model is not None:
                covered = request.hires_cover(request.width, request.height)
                pixels = upscaled_to(_upscaler(request), pixels, *covered, request.seamless)
            sampling = nearest if request.hires_upscaler == "nearest" else None
            pixels = resized(pixels, width, height, mode, sampling, request.seamless)
        found.append(encoded(padded(pixels, *size), networks, clock, seamless=request.seamless)[0])
    return np.concatenate(found)


def _upscaler(request: Request) -> Upscaler:
    assert isinstance(request.hires_model, UpscalerFile)
    return open_upscaler("hires_model", request.hires_model)


def _warnings(request: Request) -> tuple[str, ...]:
    is_latent = request.hires_upscaler in LATENT_UPSCALERS
    if is_latent and request.hires_strength < LEAST_LATENT_STRENGTH:
        return (
            f"hires_strength: at {request.hires_strength:g} enlarged latents stay blurred or "
            f"blocky; give at least {LEAST_LATENT_STRENGTH:g}, or hires_upscaler=lanczos.",
        )
    return ()
