"""Inpainting: where a request's picture may change, and how the result is laid into it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.manifest import Manifest
from sdengine.errors import ConfigError
from sdengine.inputs.mask import (
    Box,
    Weights,
    blurred,
    composite,
    latent_weights,
    mask_weights,
    masked_box,
    resized_weights,
)
from sdengine.inputs.outpaint import canvas, matched, ramp
from sdengine.inputs.picture import Pixels
from sdengine.inputs.resize import resized
from sdengine.pipeline.seamless import continued, inner
from sdengine.request.request import Request

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Inpainting:
    """Where a picture may change, and how the result is laid into it.

    Args:
        weights: [H,W] fp32 in the computation's pixels, without what pads them.
        laid: [h,w] fp32 of the box, or of the original: how much of the result is laid over it.
        free: [H,W] what is more white than black before any blur.
        cells: [1,1,h,w] fp32 of latent cells.
        original: [H,W,3] uint8 that the result is laid over.
        box: the part of the original that is computed; None for all of it.
        matches: the result gets the tone that the original has where the one passes into the other.
    """

    weights: Weights
    laid: Weights
    free: NDArray[np.bool_]
    cells: Array
    original: Pixels
    box: Box | None
    matches: bool = False

    def laid_in(self, image: Pixels) -> Pixels:
        """Lay an image over the original where it may change; the rest stays to the byte."""
        box, found = self.box, np.array(self.original)
        if box is not None:
            image = resized(image, box.width, box.height, "stretch")
        else:
            box = Box(0, 0, found.shape[1], found.shape[0])
        part = np.s_[box.top : box.bottom, box.left : box.right]
        if self.matches:
            image = matched(image, found[part], (self.laid > 0) & (self.laid < 1))
        found[part] = composite(image, found[part], self.laid)
        return found


def _blurred(weights: Weights, sigma: float, seamless: str) -> Weights:
    """Blur a mask; where edges of the picture meet, over them."""
    margin = math.ceil(2.5 * sigma)
    if seamless == "none" or margin == 0:
        return blurred(weights, sigma)
    return inner(blurred(continued(weights, seamless, margin, 0), sigma), seamless, margin, 0)


def computed_part(
    request: Request, own: Pixels, size: tuple[int, int], manifest: Manifest
) -> tuple[Pixels, Inpainting | None]:
    """Return the pixels [H,W,3] that are computed, and where they may change.

    Args:
        request: with an image.
        own: [h,w,3] its pixels.
        size: width and height of the computation.
        manifest: of the bundle.

    Raises:
        ConfigError: only what is masked shall be computed, and nothing is.
    """
    width, height = request.width, request.height
    if request.outpaint is not None:
        laid = ramp((own.shape[1], own.shape[0]), request.outpaint, request.outpaint_overlap)
        own = canvas(own, request.outpaint, request.outpaint_fill)
        # Half of the ramp is the picture's own, so that what passes into it shows the same.
        sharp = weights = (laid > 0.5).astype(np.float32)
        factors = 1, 1
    elif request.mask is not None:
        sharp = weights = mask_weights(request.mask, invert=request.mask_invert)
        if not request.soft_inpainting:
            weights = _blurred(weights, request.mask_blur, request.seamless)
        laid = weights
        # Opaque up to the middle of the blur; where grey counts, a ramp next to what stays.
        factors = (8, 8) if request.soft_inpainting else (2, 1)
    else:
        return resized(own, width, height, request.resize, wraps=request.seamless), None
    box, mode = None, request.resize
    original = pixels = own
    if request.inpaint_area == "masked":
        box = masked_box(laid, request.mask_padding, width, height)
        if box is None:
            raise ConfigError(
                'mask: nothing in it may change, so that inpaint_area="masked" has no area.'
            )
        part = np.s_[box.top : box.bottom, box.left : box.right]
        pixels = own[part]
        sharp, weights, laid = (one[part] for one in (sharp, weights, laid))
    else:
        laid = resized_weights(laid, width, height, mode, request.seamless)
    pixels = resized(pixels, width, height, mode, wraps=request.seamless)
    if box is None:
        original = pixels
    sharp, weights = (
        resized_weights(one, width, height, mode, request.seamless) for one in (sharp, weights)
    )
    below, right = size[1] - height, size[0] - width
    cells = latent_weights(
        np.pad(weights, ((0, below), (0, right)), mode="edge"),
        manifest.architecture.vae.downscale,
        soft=request.soft_inpainting,
    )
    return pixels, Inpainting(
        weights,
        (laid * factors[box is not None]).clip(0, 1),
        sharp >= 0.5,
        cells[None, None],
        original,
        box,
        matches=request.outpaint is not None,
    )
