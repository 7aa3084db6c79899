"""Tiny autoencoder of a bundle: latents to pixels and back, roughly and soon."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.bundle.manifest import Manifest
from sdengine.bundle.tensors import require_tensors
from sdengine.errors import ConfigError, NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import WeightedNetworks

DECODER, ENCODER = "tiny_decoder", "tiny_encoder"
_BOUND = np.float32(3)  # what the network was trained to read lies between minus and plus this
Array = NDArray[np.float32]


def decode_tiny(
    latents: Array, networks: WeightedNetworks, clock: StageClock, wraps: str = "none"
) -> list[NDArray[np.uint8]]:
    """Decode latents [B,C,h,w], as the U-Net has them, to an array [H,W,3] uint8 each.

    Edges meet along the axes of `wraps`; see `Networks.get`.

    Raises:
        NonFiniteError: the network gave NaN or infinity.
    """
    architecture = networks.bundle.manifest.architecture
    height, width = (side * architecture.vae.downscale for side in latents.shape[2:])
    network = networks.get(DECODER, 1, height, width, clock=clock, wraps=wraps)
    shape = latents_shape(architecture, 1, height, width)
    require_tensors(DECODER, network.inputs, {"latents": shape}, "float32")
    require_tensors(DECODER, network.outputs, {"images": (1, 3, height, width)}, "float32")
    found = []
    for index in range(len(latents)):
        with clock.stage(DECODER):
            bent = np.tanh(latents[index : index + 1] / _BOUND) * _BOUND
            images = network.run({"latents": np.ascontiguousarray(bent)})["images"]
        try:
            found.append(_native.images_to_uint8(images * np.float32(2) - np.float32(1))[0])
        except NonFiniteError:
            raise NonFiniteError.at(DECODER) from None
    return found


def encode_tiny(
    images: Array, networks: WeightedNetworks, clock: StageClock, wraps: str = "none"
) -> Array:
    """Return latents [1,C,h,w], as the U-Net has them, of an image [1,3,H,W] in [-1,1].

    Edges meet along the axes of `wraps`; see `Networks.get`.

    Raises:
        NonFiniteError: the network gave NaN or infinity.
    """
    height, width = images.shape[2:]
    shape = latents_shape(networks.bundle.manifest.architecture, 1, height, width)
    network = networks.get(ENCODER, 1, height, width, clock=clock, wraps=wraps)
    require_tensors(ENCODER, network.inputs, {"images": (1, 3, height, width)}, "float32")
    require_tensors(ENCODER, network.outputs, {"latents": shape}, "float32")
    with clock.stage(ENCODER):
        half = np.float32(0.5)
        latents = np.array(network.run({"images": images * half + half})["latents"])
    if not np.isfinite(latents).all():
        raise NonFiniteError.at(ENCODER)
    return latents


def require_tiny(manifest: Manifest, network: str, field: str) -> None:
    """Refuse a request that wants a network which a bundle does not have.

    Args:
        manifest: of the bundle.
        network: DECODER or ENCODER.
        field: that asks for it.

    Raises:
        ConfigError: the bundle has none.
    """
    if network not in manifest.networks:
        raise ConfigError(
            f"{field}: the bundle has no {network.replace('_', ' ')}. Build it with "
            "`sdengine build CHECKPOINT --tiny-vae FILE_OR_FOLDER`, or take the VAE."
        )
