"""Guidance: the rows of an evaluation combined, with prompts joined by AND and guidance rescale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine.pipeline.row_plan import RowPlan

Array = NDArray[np.float32]


def guide(
    noise_pred: Array,
    plan: RowPlan,
    guidance_scale: float,
    guidance_rescale: float,
    shares: Array | None = None,
) -> Array:
    """Combine the rows of one evaluation.

    Args:
        noise_pred: [blocks*B,C,h,w] fp32.
        plan: what the rows are.
        guidance_scale: s in uncond + s * sum_i weight_i * (part_i - uncond).
        guidance_rescale: 0 to 1, share of the result that is brought back to the standard
            deviation of the conditional output.
        shares: [parts,B,1,h,w] fp32, factors on the weights in each cell; None for 1.

    Returns:
        [B,C,h,w] fp32.

    Source: "Classifier-Free Diffusion Guidance" (Ho and Salimans 2022), equation 6; "Compositional
    Visual Generation with Composable Diffusion Models" (Liu et al. 2022), equation 11; "Common
    Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023), equations 14 to 16.
    """
    blocks = noise_pred.reshape(-1, plan.num_images, *noise_pred.shape[1:])
    weights = plan.weights[:, :, None, None, None]
    if shares is not None:
        weights = weights * shares
    if not plan.has_negative:
        return np.asarray((weights * blocks).sum(axis=0), dtype=np.float32)
    uncond, parts = blocks[0], blocks[1:]
    direction = (weights * (parts - uncond)).sum(axis=0)
    guided = uncond + np.float32(guidance_scale) * direction
    if guidance_rescale > 0:
        axes = (1, 2, 3)
        # The sample standard deviation, as the published implementations take it.
        wanted = (uncond + direction).std(axis=axes, ddof=1, keepdims=True)
        found = guided.std(axis=axes, ddof=1, keepdims=True)
        factor = guidance_rescale * (wanted / np.maximum(found, 1e-12)) + (1 - guidance_rescale)
        guided = guided * factor
    return np.ascontiguousarray(guided, dtype=np.float32)
