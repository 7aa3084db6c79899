"""What the network's rows say together: guidance, prompts joined by AND, guidance rescale.

Rows of one evaluation: the unconditional half first when there is one, then a block for each part
that prompts are joined of, every block with one row an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RowPlan:
    """Which conditioning each row of an evaluation reads, and what its output counts.

    Args:
        rows: [blocks*B] index into the conditioning's prompts.
        weights: [parts,B] fp32 weight of each part; zero where an image has fewer parts.
        has_negative: the first block is the unconditional one.
    """

    rows: tuple[int, ...]
    weights: Array
    has_negative: bool

    @property
    def num_images(self) -> int:
        """Number of images B."""
        return int(self.weights.shape[1])

    @cached_property
    def is_plain(self) -> bool:
        """Whether one part of weight 1 is all there is, as the native step expects."""
        return self.weights.shape[0] == 1 and bool((self.weights == 1).all())


def guide(
    noise_pred: Array, plan: RowPlan, guidance_scale: float, guidance_rescale: float
) -> Array:
    """Combine the rows of one evaluation.

    Args:
        noise_pred: [blocks*B,C,h,w] fp32.
        plan: what the rows are.
        guidance_scale: s in uncond + s * sum_i weight_i * (part_i - uncond).
        guidance_rescale: 0 to 1, share of the result that is brought back to the standard
            deviation of the conditional output.

    Returns:
        [B,C,h,w] fp32.

    Source: "Classifier-Free Diffusion Guidance" (Ho and Salimans 2022), equation 6; "Compositional
    Visual Generation with Composable Diffusion Models" (Liu et al. 2022), equation 11; "Common
    Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023), equations 14 to 16.
    """
    blocks = noise_pred.reshape(-1, plan.num_images, *noise_pred.shape[1:])
    weights = plan.weights[:, :, None, None, None]
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
