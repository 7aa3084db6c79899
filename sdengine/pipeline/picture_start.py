"""Start from a picture: its pixels at the size of the computation, and its latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.manifest import Manifest
from sdengine.bundle.reader import check_size
from sdengine.bundle.tensors import require_tensors
from sdengine.errors import ConfigError, NonFiniteError
from sdengine.inputs.picture import Pixels
from sdengine.inputs.resize import flattened, padded, resized
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import Networks
from sdengine.request.request import Request
from sdengine.samplers.noise import NoiseSource

ENCODER = "vae_encoder"
Array = NDArray[np.float32]
# Built sizes that are larger than a picture by less than this serve it, padded.
_MOST_PADDING = 64


def computed_size(request: Request, manifest: Manifest) -> tuple[int, int]:
    """Return the width and height that networks compute a request at.

    Without a picture it is the request's own; with one, the next that the bundle runs: the picture
    is padded by its last row and column, and the result cropped.

    Raises:
        UnsupportedShapeError: the bundle runs none.
    """
    width, height = request.width, request.height
    if request.image is not None:
        width, height = _next_size(width, height, manifest)
    check_size(width, height, manifest)
    return width, height


def _next_size(width: int, height: int, manifest: Manifest) -> tuple[int, int]:
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
    """

    pixels: Pixels
    mean: Array
    deviation: Array

    def latents(self, request: Request, noise: NoiseSource, count: int) -> Array:
        """Return the latents [count,C,h,w] of as many images; drawn ones take noise first."""
        mean = np.repeat(self.mean, count, axis=0)
        if request.encode == "mean":
            return mean
        drawn = np.empty_like(mean)
        noise.step(drawn)
        return np.asarray(mean + self.deviation * drawn)


def starting_picture(
    request: Request, size: tuple[int, int], networks: Networks, clock: StageClock
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
    pixels = request_pixels(request)
    if request.resize == "latent":
        own = flattened(_given(request), _rgb(request.background))
        manifest = networks.bundle.manifest
        own_size = _next_size(own.shape[1], own.shape[0], manifest)
        check_size(*own_size, manifest)
        moments = _encoded(padded(own, *own_size), networks, clock)
        cells = latents_shape(manifest.architecture, 1, size[1], size[0])[2:]
        mean, deviation = (_bilinear(one, *cells) for one in moments)
    else:
        mean, deviation = _encoded(padded(pixels, *size), networks, clock)
    return StartingPicture(pixels, mean, deviation)


def request_pixels(request: Request) -> Pixels:
    """Return a request's picture [H,W,3] at the request's size."""
    own = flattened(_given(request), _rgb(request.background))
    mode = "stretch" if request.resize == "latent" else request.resize
    return resized(own, request.width, request.height, mode)


def require_picture(request: Request, manifest: Manifest) -> None:
    """Refuse, before any work, a picture that is not there or that nothing can encode.

    Raises:
        ConfigError: so it is.
    """
    if request.image is None:
        return
    if not request.image.is_given:
        raise ConfigError(
            f"image: only the record of the picture with SHA-256 {request.image.sha256} is known. "
            "Give the picture itself, with --image or image=."
        )
    if ENCODER not in manifest.networks:
        raise ConfigError(
            "image: the bundle has no VAE encoder, so that it makes images from prompts alone. "
            "Build it again with `sdengine build`."
        )


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


def _given(request: Request) -> Pixels:
    assert request.image is not None and request.image.pixels is not None
    return request.image.pixels


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def _encoded(pixels: Pixels, networks: Networks, clock: StageClock) -> tuple[Array, Array]:
    """Return mean and deviation [1,C,h,w] of the latents of [H,W,3] pixels."""
    height, width = pixels.shape[:2]
    architecture = networks.bundle.manifest.architecture
    encoder = networks.get(ENCODER, 1, height, width, clock=clock)
    _, channels, rows, columns = latents_shape(architecture, 1, height, width)
    require_tensors(ENCODER, encoder.inputs, {"images": (1, 3, height, width)}, "float32")
    require_tensors(
        ENCODER, encoder.outputs, {"moments": (1, 2 * channels, rows, columns)}, "float32"
    )
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)
    images = images / np.float32(127.5) - np.float32(1)
    with clock.stage(ENCODER):
        moments = encoder.run({"images": images})["moments"]
    if not np.isfinite(moments).all():
        raise NonFiniteError.at(ENCODER)
    scale = np.float32(architecture.vae.scaling_factor)
    deviation = np.exp(0.5 * np.clip(moments[:, channels:], -30, 20))
    return moments[:, :channels] * scale, np.asarray(deviation * scale, np.float32)


def _bilinear(maps: Array, height: int, width: int) -> Array:
    """Resize [1,C,h,w] between the middles of cells, without antialiasing."""
    for axis, size in ((2, height), (3, width)):
        places = (np.arange(size) + 0.5) * (maps.shape[axis] / size) - 0.5
        places = places.clip(0, maps.shape[axis] - 1)
        low = places.astype(int)
        high = np.minimum(low + 1, maps.shape[axis] - 1)
        shape = [-1 if one == axis else 1 for one in range(4)]
        share = (places - low).reshape(shape).astype(np.float32)
        maps = np.take(maps, low, axis) * (1 - share) + np.take(maps, high, axis) * share
    return maps
