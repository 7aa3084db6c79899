"""Codec: a picture to its latents and back, without a U-Net."""

from __future__ import annotations

import numpy as np

from sdengine.bundle.reader import check_size
from sdengine.errors import ConfigError
from sdengine.images.latents import Latents
from sdengine.inputs.picture import Picture, Pixels, read_picture
from sdengine.inputs.resize import flattened, padded
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.decoding import decode
from sdengine.pipeline.encoding import ENCODER, encoded
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.picture_start import next_size

_WHITE = (255, 255, 255)


def padded_size(width: int, height: int, networks: WeightedNetworks) -> tuple[int, int]:
    """Return the size at which a picture is encoded.

    Raises:
        ConfigError: the bundle has no encoder.
        UnsupportedShapeError: it runs no such size.
    """
    manifest = networks.bundle.manifest
    if ENCODER not in manifest.networks:
        raise ConfigError("image: the bundle has no VAE encoder; build it with `sdengine build`.")
    size = next_size(width, height, manifest)
    check_size(*size, manifest)
    return size


def own_pixels(image: object) -> Pixels:
    """Return a picture's pixels [h,w,3], on white where it is transparent.

    Raises:
        ConfigError: it is no picture.
    """
    picture = read_picture("image", image)
    if not isinstance(picture, Picture):
        raise ConfigError.for_field("image", image, "a picture, not its record")
    return flattened(picture.pixels, _WHITE)


def encode_pixels(
    pixels: Pixels, size: tuple[int, int], networks: WeightedNetworks, model_hash: str
) -> Latents:
    """Return the mean latents of [h,w,3] pixels, padded to a size."""
    mean, _ = encoded(padded(pixels, *size), networks, StageClock())
    return Latents(mean[0], (pixels.shape[1], pixels.shape[0]), model_hash)


def latents_size(latents: Latents, networks: WeightedNetworks, model_hash: str) -> tuple[int, int]:
    """Return the size at which latents are decoded.

    Raises:
        ConfigError: they are none, or another model's.
        UnsupportedShapeError: the bundle runs no such size.
    """
    if not isinstance(latents, Latents) or np.ndim(latents.values) != 3:
        accepted = "sdengine.Latents with values [C,h,w], as `encode` returns them"
        raise ConfigError.for_field("latents", type(latents).__name__, accepted)
    vae = networks.bundle.manifest.architecture.vae
    channels, rows, columns = latents.values.shape
    if channels != vae.latent_channels or latents.model_hash != model_hash:
        raise ConfigError(
            f"latents: they were made by the model with SHA-256 {latents.model_hash[:12]}..., "
            f"the bundle's is {model_hash[:12]}...; each VAE reads its own only."
        )
    size = columns * vae.downscale, rows * vae.downscale
    check_size(*size, networks.bundle.manifest)
    if any(side > most for side, most in zip(latents.size, size, strict=True)):
        own, decoded = ("{}x{}".format(*one) for one in (latents.size, size))
        raise ConfigError(
            f"latents: they are of {own} pixels, which is more than the {decoded} that they make."
        )
    return size


def decode_latents(latents: Latents, networks: WeightedNetworks) -> Pixels:
    """Return the picture [h,w,3] of latents, cut to its size."""
    width, height = latents.size
    values = np.ascontiguousarray(latents.values[None], np.float32)
    (pixels,) = decode(values, networks, StageClock())
    return np.ascontiguousarray(pixels[:height, :width])
