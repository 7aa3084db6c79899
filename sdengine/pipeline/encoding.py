"""Encoding: pixels to latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.tensors import require_tensors
from sdengine.errors import NonFiniteError
from sdengine.inputs.picture import Pixels
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.seamless import MARGIN, continued, inner
from sdengine.pipeline.tiny_autoencoder import encode_tiny

ENCODER = "vae_encoder"
Array = NDArray[np.float32]


def in_range(pixels: Pixels) -> Array:
    """Return [H,W,3] pixels as [1,3,H,W] in [-1,1]."""
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32)
    return np.asarray(images / np.float32(127.5) - np.float32(1))


def encoded(
    pixels: Pixels,
    networks: WeightedNetworks,
    clock: StageClock,
    encode: str = "mean",
    seamless: str = "none",
) -> tuple[Array, Array]:
    """Return mean and deviation [1,C,h,w] of the latents of [H,W,3] pixels; see `encode_image`."""
    return encode_image(in_range(pixels), encode, networks, clock, seamless)


def encode_image(
    images: Array,
    encode: str,
    networks: WeightedNetworks,
    clock: StageClock,
    seamless: str = "none",
) -> tuple[Array, Array]:
    """Return mean and deviation [1,C,h,w] of an image's latents, as the U-Net sees them.

    Args:
        images: [1,3,H,W] in [-1,1].
        encode: of a request: "tiny" asks for the tiny encoder, whose latents have no deviation.
        networks, clock: as for `decoding.decode`.
        seamless: of a request, whose edges meet then.

    Raises:
        NonFiniteError: the encoder gave NaN or infinity.
    """
    architecture = networks.bundle.manifest.architecture
    if seamless != "none" and not networks.can_wrap:
        wide = continued(images, seamless, MARGIN * architecture.vae.downscale)
        mean, deviation = encode_image(wide, encode, networks, clock)
        return inner(mean, seamless, MARGIN), inner(deviation, seamless, MARGIN)
    if encode == "tiny":
        latents = encode_tiny(images, networks, clock, seamless)
        return latents, np.zeros_like(latents)
    height, width = images.shape[2:]
    encoder = networks.get(ENCODER, 1, height, width, clock=clock, wraps=seamless)
    _, channels, rows, columns = latents_shape(architecture, 1, height, width)
    require_tensors(ENCODER, encoder.inputs, {"images": (1, 3, height, width)}, "float32")
    require_tensors(
        ENCODER, encoder.outputs, {"moments": (1, 2 * channels, rows, columns)}, "float32"
    )
    with clock.stage(ENCODER):
        moments = encoder.run({"images": images})["moments"]
    if not np.isfinite(moments).all():
        raise NonFiniteError.at(ENCODER)
    scale = np.float32(architecture.vae.scaling_factor)
    deviation = np.exp(0.5 * np.clip(moments[:, channels:], -30, 20))
    return moments[:, :channels] * scale, np.asarray(deviation * scale, np.float32)
