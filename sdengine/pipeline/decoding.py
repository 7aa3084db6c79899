"""Decoding: latents to pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.base import Module
from sdengine.backends.device_protocols import decodes_pixels
from sdengine.bundle.architecture import Architecture
from sdengine.bundle.tensors import require_tensors
from sdengine.errors import NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import WeightedNetworks


def decode(
    latents: NDArray[np.float32],
    networks: WeightedNetworks,
    clock: StageClock,
    wraps: str = "none",
) -> list[NDArray[np.uint8]]:
    """Decode images one after the other.

    Args:
        latents: [B,C,h,w] fp32, scaled as the U-Net sees them.
        networks: of the open bundle.
        clock: where time is counted.
        wraps: the axes along which the decoder's edges meet; see `Networks.get`.

    Returns:
        One [H,W,3] uint8 array an image.

    Raises:
        NonFiniteError: the decoder gave NaN or infinity.
    """
    architecture = networks.bundle.manifest.architecture
    downscale = architecture.vae.downscale
    height, width = latents.shape[2] * downscale, latents.shape[3] * downscale

    def check(module: Module) -> None:
        _check(module, architecture, height, width)

    vae = networks.get("vae_decoder", 1, height, width, clock=clock, check=check, wraps=wraps)
    scale = 1.0 / architecture.vae.scaling_factor
    try:
        if decodes_pixels(vae):
            with clock.stage("vae_decoder", calls=len(latents)):
                images, others_ns = vae.decode(latents, scale)
            clock.add("vae_decoder", -others_ns, 0)
            return list(images)
        return _decoded_by_host(latents, scale, vae, clock)
    except NonFiniteError:
        raise NonFiniteError.at("vae_decoder") from None


def _decoded_by_host(
    latents: NDArray[np.float32], scale: float, vae: Module, clock: StageClock
) -> list[NDArray[np.uint8]]:
    one = np.empty((1, *latents.shape[1:]), dtype=np.float32)
    images = []
    for index in range(len(latents)):
        _native.scale_duplicate(latents[index : index + 1], scale, one)
        with clock.stage("vae_decoder"):
            decoded = vae.run({"latents": one})["images"]
        images.append(_native.images_to_uint8(decoded)[0])
    return images


def _check(vae: Module, architecture: Architecture, height: int, width: int) -> None:
    shape = latents_shape(architecture, 1, height, width)
    require_tensors("vae_decoder", vae.inputs, {"latents": shape}, "float32")
    require_tensors("vae_decoder", vae.outputs, {"images": (1, 3, height, width)}, "float32")
