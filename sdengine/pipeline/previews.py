"""Previews: what latents are about, in less time than decoding them takes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.bundle.architecture import VAEArchitecture
from sdengine.bundle.manifest import Manifest
from sdengine.errors import ConfigError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.pipeline.seamless import decode_seamless
from sdengine.pipeline.tiny_autoencoder import DECODER, require_tiny

PREVIEWS = ("linear", "tiny", "vae")
# Of a map that errs more, previews have wrong colours: half a picture's contrast is missed.
_MOST_COLOUR_ERROR = 0.4
_PREVIEW_CELLS = 16  # the longer side of a preview, in latent cells


def preview(
    clean: NDArray[np.float32],
    method: str,
    networks: WeightedNetworks,
    clock: StageClock,
    seamless: str = "none",
) -> NDArray[np.uint8]:
    """Show what latents are about.

    Args:
        clean: [B,C,h,w] fp32 estimate of the clean latents.
        method: one of PREVIEWS: "linear" gives each cell its colour, "tiny" decodes all with the
            tiny decoder, "vae" decodes the latents averaged to at most 16 cells a side, where their
            size allows.
        networks, clock: as for `decode`.
        seamless: of the request, whose edges meet then.

    Returns:
        [B,h',w',3] uint8.
    """
    if method == "tiny":
        return np.stack(decode_seamless(clean, seamless, networks, clock, "tiny"))
    if method == "linear":
        return linear_preview(clean, networks.bundle.manifest.architecture.vae)
    batch, channels, height, width = clean.shape
    common = math.gcd(height, width)
    factors = [f for f in range(1, common + 1) if common % f == 0]
    small = [f for f in factors if max(height, width) // f <= _PREVIEW_CELLS]
    f = small[0] if small else factors[-1]
    cells = clean.reshape(batch, channels, height // f, f, width // f, f)
    averaged = np.ascontiguousarray(cells.mean(axis=(3, 5)), dtype=np.float32)
    return np.stack(decode_seamless(averaged, seamless, networks, clock))


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
