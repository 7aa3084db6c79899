"""Start from a picture: its pixels at the size of the computation, and its latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.manifest import Manifest
from sdengine.bundle.reader import check_size
from sdengine.errors import ConfigError
from sdengine.inputs.control_picture import control_pixels
from sdengine.inputs.depth import coloured_warning, depth_warnings, has_colours
from sdengine.inputs.interpolation import interpolated
from sdengine.inputs.mask import Box, filled, latent_weights
from sdengine.inputs.picture import Picture, Pixels
from sdengine.inputs.resize import flattened, padded, resized
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.encoding import ENCODER, encode_image, encoded, in_range
from sdengine.pipeline.inpainting import Inpainting, computed_part
from sdengine.pipeline.known_part import KnownPart
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.tiny_autoencoder import ENCODER as TINY_ENCODER
from sdengine.pipeline.tiny_autoencoder import require_tiny
from sdengine.request.picture_fields import FILES, PICTURES
from sdengine.request.request import Request
from sdengine.samplers.noise import NoiseSource

Array = NDArray[np.float32]
# Built sizes that are larger than a picture by less than this serve it, padded.
_MOST_PADDING = 64


def computed_size(request: Request, manifest: Manifest) -> tuple[int, int]:
    """Return the width and height that networks compute a request at.

    Without a picture it is the request's own; with one, the next that the bundle runs: the picture
    is padded by its last row and column, and the result cropped. Of a picture in tiles, which
    have sizes that the bundle runs themselves, each side only is so many whole latent cells.

    Raises:
        UnsupportedShapeError: the bundle runs none.
    """
    width, height = request.width, request.height
    if (tile := request.tile_size) is not None and exceeds(tile, width, height):
        if request.image is None:
            return width, height
        return _side(width, tile[0], manifest), _side(height, tile[1], manifest)
    if request.image is not None:
        width, height = next_size(width, height, manifest)
    check_size(width, height, manifest)
    return width, height


def exceeds(tile: tuple[int, int], width: int, height: int) -> bool:
    """Tell whether a picture is more than one tile."""
    return width > tile[0] or height > tile[1]


def _side(side: int, tile: int, manifest: Manifest) -> int:
    """Return the side of a canvas in tiles that a picture's fits into."""
    multiple = manifest.architecture.vae.downscale
    if side < tile:  # and all of it is in each tile
        if manifest.size_multiple is None:
            return tile if tile - side < _MOST_PADDING else side
        multiple = manifest.size_multiple
    return -(-side // multiple) * multiple


def next_size(width: int, height: int, manifest: Manifest) -> tuple[int, int]:
    """Return the smallest size that a bundle runs and a picture fits into, or the picture's own."""
    if (width, height) in manifest.resolutions:
        return width, height
    if (multiple := manifest.size_multiple) is not None:
        return -(-width // multiple) * multiple, -(-height // multiple) * multiple
    near = [
        (w, h)
        for w, h in manifest.resolutions
        if 0 <= w - width < _MOST_PADDING and 0 <= h - height < _MOST_PADDING
    ]
    return min(near, key=lambda size: size[0] * size[1], default=(width, height))


@dataclass(frozen=True)
class StartingPicture:
    """A picture as a trajectory starts from it.

    Args:
        pixels: [H,W,3] uint8 at the request's size.
        mean, deviation: [1,C,h,w] fp32 of its latents, as the U-Net sees them.
        inpainting: where it may change; None for everywhere.
    """

    pixels: Pixels
    mean: Array
    deviation: Array
    inpainting: Inpainting | None = None

    @property
    def computed_part(self) -> tuple[int, int, Box] | None:
        """Width and height of the whole picture and the part that is computed; None for all."""
        if self.inpainting is None or self.inpainting.box is None:
            return None
        height, width = self.inpainting.original.shape[:2]
        return width, height, self.inpainting.box

    def latents(self, request: Request, noise: NoiseSource, count: int, draws: bool) -> Array:
        """Return the latents [count,C,h,w] of as many images; drawn ones take noise first."""
        mean = np.repeat(self.mean, count, axis=0)
        if request.encode != "sample" or not draws:
            return mean
        drawn = np.empty_like(mean)
        noise.step(drawn)
        return np.asarray(mean + self.deviation * drawn)

    def start(
        self, request: Request, latents: Array, make_noise: Callable[[], NoiseSource]
    ) -> Array:
        """Return what a trajectory starts from: the latents, with what shall be masked by.

        Args:
            request: says by what.
            latents: [B,C,h,w] of the picture.
            make_noise: gives that of the same images, from its beginning.
        """
        if self.inpainting is None or request.masked_content in ("original", "fill"):
            return latents
        free = self.inpainting.cells
        content = (
            make_noise().initial() if request.masked_content == "latent_noise" else np.float32(0)
        )
        return np.asarray((1 - free) * latents + free * content, np.float32)

    def known(self, request: Request, latents: Array, task: str) -> KnownPart | None:
        """Return what trajectories of a model for a task keep of the latents [B,C,h,w]."""
        rule = request.mask_blend
        if rule == "auto":
            rule = "none" if task == "inpainting" and not request.soft_inpainting else "clean"
        if self.inpainting is None or rule == "none":
            return None
        return KnownPart(latents, self.inpainting.cells, rule, request.soft_inpainting)

    def finished(self, request: Request, images: list[Pixels]) -> list[Pixels]:
        """Return decoded images as the request wants them: cut, corrected, laid into the picture.

        Args:
            request: that they are of.
            images: [H,W,3] in the size of the computation.
        """
        images = [np.ascontiguousarray(one[: request.height, : request.width]) for one in images]
        if request.color_correction:
            images = corrected(images, self.pixels)
        if self.inpainting is None:
            return images
        return [self.inpainting.laid_in(one) for one in images]


def starting_picture(
    request: Request, size: tuple[int, int], networks: WeightedNetworks, clock: StageClock
) -> StartingPicture:
    """Read, resize and encode a request's picture.

    Args:
        request: with an image.
        size: width and height of the computation.
        networks: of the open bundle.
        clock: where time is counted.

    Raises:
        NonFiniteError: the encoder gave NaN or infinity.
    """
    own = _flat(request)
    if request.resize == "latent":
        manifest = networks.bundle.manifest
        own_size = next_size(own.shape[1], own.shape[0], manifest)
        meets = request.seamless if own_size == own.shape[1::-1] else "none"
        moments = encoded(padded(own, *own_size), networks, clock, request.encode, meets)
        cells = latents_shape(manifest.architecture, 1, size[1], size[0])[2:]
        mean, deviation = (interpolated(one, *cells, "bilinear", meets) for one in moments)
        pixels = resized(own, request.width, request.height, "stretch", wraps=meets)
        inpainting = None
    else:
        pixels, inpainting = computed_part(request, own, size, networks.bundle.manifest)
        content = pixels
        if inpainting is not None and request.masked_content == "fill":
            content = filled(pixels, inpainting.weights)
        mean, deviation = encoded(
            padded(content, *size), networks, clock, request.encode, request.seamless
        )
    return StartingPicture(pixels, mean, deviation, inpainting)


@dataclass(frozen=True)
class MaskedPicture:
    """What an inpainting U-Net reads behind the latents: the mask, and what it leaves.

    Args:
        cells: [1,1,h,w] fp32, 1 where a latent cell may change.
        mean, deviation: [1,C,h,w] fp32 of the latents of the picture with 0, the middle of its
            range, where it may change.

    Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al. 2022),
    section 4.5, with the published models' convention for masked pixels.
    """

    cells: Array
    mean: Array
    deviation: Array

    def channels(
        self, request: Request, make_noise: Callable[[], NoiseSource], count: int
    ) -> Array:
        """Return [count,1+C,h,w]; drawn latents take noise after the trajectory's start.

        Args:
            request: says whether they are drawn.
            make_noise: gives that of the same images, from its beginning.
            count: images.
        """
        cells, mean = (np.repeat(one, count, axis=0) for one in (self.cells, self.mean))
        if request.encode == "sample" and request.image is not None:
            drawn, noise = np.empty_like(mean), make_noise()
            if request.starts_from_picture:
                noise.step(drawn)
            noise.initial()
            noise.step(drawn)
            mean = mean + self.deviation * drawn
        return np.concatenate([cells, mean], axis=1)


def masked_picture(
    picture: StartingPicture | None,
    request: Request,
    size: tuple[int, int],
    networks: WeightedNetworks,
    clock: StageClock,
) -> MaskedPicture:
    """Return what an inpainting U-Net reads; without a mask everything may change.

    Args:
        picture: of the request, if it has one.
        request: that it is of.
        size: width and height of the computation.
        networks, clock: as for `starting_picture`.
    """
    width, height = size
    free = np.ones((height, width), bool)
    left = np.zeros((1, 3, height, width), np.float32)
    if picture is not None and picture.inpainting is not None:
        rows, columns = picture.inpainting.free.shape
        around = ((0, height - rows), (0, width - columns))
        free = np.pad(picture.inpainting.free, around, mode="edge")
        left = in_range(padded(picture.pixels, *size)) * ~free
    downscale = networks.bundle.manifest.architecture.vae.downscale
    cells = latent_weights(free.astype(np.float32), downscale, soft=False)
    parts = encode_image(left, request.encode, networks, clock, request.seamless)
    return MaskedPicture(cells[None, None], *parts)


def require_pictures(request: Request, manifest: Manifest) -> None:
    """Refuse, before any work, pictures and files that are not there or that nothing can use.

    Raises:
        ConfigError: so it is.
    """
    for name in FILES:
        found = getattr(request, name)
        if found is not None and not found.is_given:
            kind = "picture" if name in PICTURES else "file"
            raise ConfigError(
                f"{name}: only the record of the {kind} with SHA-256 {found.sha256} is known. "
                f"Give the {kind} itself, with --{name.replace('_', '-')} or {name}=."
            )
    task = manifest.architecture.task
    if task == "depth" and request.depth is None:
        raise ConfigError("depth: it is missing; the bundle's model needs a depth map.")
    if task != "depth" and request.depth is not None:
        raise ConfigError.for_field("depth", request.depth, "none: the bundle's is no depth model")
    if request.resize == "latent" and request.image is not None:
        check_size(*next_size(*request.image.size, manifest), manifest)
    if request.encode == "tiny":
        require_tiny(manifest, TINY_ENCODER, "encode")
    elif ENCODER not in manifest.networks and (request.image is not None or task == "inpainting"):
        raise ConfigError(
            "image: the bundle has no VAE encoder, so that it makes images from prompts alone. "
            "Build it again with `sdengine build`."
        )


def picture_warnings(request: Request) -> tuple[str, ...]:
    """Say what pictures ask for and do not get."""
    lines = [] if request.depth is None else [*depth_warnings("depth", request.depth)]
    lines += [
        coloured_warning(f"control {control.network}")
        for control in request.controls
        if control.preprocess == "depth" and has_colours(control_pixels(control.image))
    ]
    if request.outpaint is not None and request.image is not None:
        own = request.image.size
        canvas = request.outpaint.size(*own)
        lines += [
            f"control {control.network}: its picture has the size of image, {own[0]}x{own[1]}, and "
            f"is resized to the enlarged one, {canvas[0]}x{canvas[1]}, so that it lies elsewhere "
            "than what it shows. Give a picture of the enlarged size."
            for control in request.controls
            if control.image.size == own
        ]
    return tuple(lines)


def corrected(images: list[Pixels], like: Pixels) -> list[Pixels]:
    """Give images [H,W,3] the mean and deviation of a picture's channels."""
    wanted = like.reshape(-1, 3).astype(np.float64)
    found = []
    for image in images:
        values = image.reshape(-1, 3).astype(np.float64)
        gain = wanted.std(axis=0) / np.maximum(values.std(axis=0), 1e-6)
        values = (values - values.mean(axis=0)) * gain + wanted.mean(axis=0)
        found.append(np.rint(values).clip(0, 255).astype(np.uint8).reshape(image.shape))
    return found


def _flat(request: Request) -> Pixels:
    """Return a request's picture [h,w,3] at its own size."""
    assert isinstance(request.image, Picture)
    return flattened(request.image.pixels, _rgb(request.background))


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue
