"""Seeded weights in a published architecture: for benchmarks and tests that need no download."""

from __future__ import annotations

import math

import torch
from torch import nn

_BIAS_STD = 0.05


@torch.no_grad()
def seed_weights(module: nn.Module, seed: int) -> None:
    """Fill a module with seeded weights that keep activations finite and near unit scale.

    Products get normal weights of variance 1/fan_in, norms are near the identity, and biases are
    small but nonzero, so that a test against another implementation notices a forgotten one.

    Args:
        module: on the CPU, in any float dtype.
        seed: the same seed gives the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            is_norm_weight = name.endswith("weight")
            values = values * _BIAS_STD + (1.0 if is_norm_weight else 0.0)
        elif "embedding.weight" not in name:  # embedding tables are looked up, not multiplied
            values /= math.sqrt(parameter[0].numel())
        parameter.copy_(values)
