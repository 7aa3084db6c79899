"""Decoding: latents to pixels, exactly for results and in less time for previews."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.base import Module
from sdengine.backends.device_protocols import decodes_pixels
from sdengine.bundle.architecture import Architecture, VAEArchitecture
from sdengine.bundle.manifest import Manifest
from sdengine.bundle.tensors import require_tensors
from sdengine.errors import ConfigError, NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.tiny_autoencoder import DECODER, decode_tiny, require_tiny

PREVIEWS = ("linear", "tiny", "vae")
# Of a map that errs more, previews have wrong colours: half a picture's contrast is missed.
_MOST_COLOUR_ERROR = 0.4
_PREVIEW_CELLS = 16  # the longer side of a preview, in latent cells


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


def preview(
    clean: NDArray[np.float32], method: str, networks: WeightedNetworks, clock: StageClock
) -> NDArray[np.uint8]:
    """Show what latents are about.

    Args:
        clean: [B,C,h,w] fp32 estimate of the clean latents.
        method: one of PREVIEWS: "linear" gives each cell its colour, "tiny" decodes all with the
            tiny decoder, "vae" decodes the latents averaged to at most 16 cells a side, where their
            size allows.
        networks, clock: as for `decode`.

    Returns:
        [B,h',w',3] uint8.
    """
    if method == "tiny":
        return np.stack(decode_tiny(clean, networks, clock))
    if method == "linear":
        return linear_preview(clean, networks.bundle.manifest.architecture.vae)
    batch, channels, height, width = clean.shape
    common = math.gcd(height, width)
    factors = [f for f in range(1, common + 1) if common % f == 0]
    small = [f for f in factors if max(height, width) // f <= _PREVIEW_CELLS]
    f = small[0] if small else factors[-1]
    cells = clean.reshape(batch, channels, height // f, f, width // f, f)
    averaged = np.ascontiguousarray(cells.mean(axis=(3, 5)), dtype=np.float32)
    return np.stack(decode(averaged, networks, clock))


def linear_preview(clean: NDArray[np.float32], vae: VAEArchitecture) -> NDArray[np.uint8]:
    """Return [B,h,w,3] uint8: about the colour of each cell of latents [B,C,h,w].

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    rows = np.asarray(vae.latent_rgb, dtype=np.float32)
    colours = np.einsum("bchw,cr->brhw", clean, rows[:-1]) + rows[-1].reshape(1, 3, 1, 1)
    return _native.images_to_uint8(np.ascontiguousarray(colours, dtype=np.float32))


def preview_method(manifest: Manifest, asked: str | None) -> str:
    """Return how previews are made: as was asked for, or in the quickest way that shows colours.

    Raises:
        ConfigError: it is unknown, or the bundle lacks what it needs.
    """
    has_colours = manifest.architecture.vae.latent_rgb is not None
    if asked is None:
        error = manifest.architecture.vae.latent_rgb_error or 0.0
        return "linear" if has_colours and error <= _MOST_COLOUR_ERROR else "vae"
    if asked not in PREVIEWS:
        raise ConfigError.for_field("preview", asked, ", ".join(PREVIEWS))
    if asked == "tiny":
        require_tiny(manifest, DECODER, "preview")
    if asked == "linear" and not has_colours:
        raise ConfigError(
            "preview: the bundle notes no colours of latents; those that earlier releases built "
            "do not, nor does the demo inside the package. Build it with `sdengine build`, or take "
            'preview="vae".'
        )
    return asked


def _check(vae: Module, architecture: Architecture, height: int, width: int) -> None:
    shape = latents_shape(architecture, 1, height, width)
    require_tensors("vae_decoder", vae.inputs, {"latents": shape}, "float32")
    require_tensors("vae_decoder", vae.outputs, {"images": (1, 3, height, width)}, "float32")
