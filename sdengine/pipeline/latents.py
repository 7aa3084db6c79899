"""Latents: their shape for an image size, and the noise that they start from."""

from __future__ import annotations

from sdengine.bundle.architecture import Architecture
from sdengine.request.request import Request
from sdengine.samplers.noise import NoiseSource


def latents_shape(
    architecture: Architecture, rows: int, height: int, width: int
) -> tuple[int, int, int, int]:
    """Return [rows,C,h,w] of the latents of an image size in pixels."""
    vae = architecture.vae
    return rows, vae.latent_channels, height // vae.downscale, width // vae.downscale


def noise_of(
    request: Request, size: tuple[int, int], images: range, architecture: Architecture
) -> NoiseSource:
    """Return what draws the noise of some images of a request at a width and height."""
    shape = latents_shape(architecture, len(images), size[1], size[0])
    resize_from = None
    if request.seed_width is not None and request.seed_height is not None:
        taken = latents_shape(architecture, 1, request.seed_height, request.seed_width)
        resize_from = taken[2:]
    variation = request.variation_seed
    return NoiseSource(
        [request.seeds[i] for i in images],
        shape[1:],
        kind=request.noise,
        variation_seeds=None if variation is None else [variation + i for i in images],
        variation_strength=request.variation_strength,
        resize_from=resize_from,
    )
