"""Diffusion with v-prediction: the loss of one batch, and sampling to watch a training by."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sdengine.training.loop import Draw

# Predicts v [B,C,h,w] of noised latents [B,C,h,w] at timesteps [B].
Predict = Callable[[Tensor, Tensor], Tensor]
_OBJECT_WEIGHT = 2.0  # added to the loss where an object is


def demo_alphas_cumprod() -> Tensor:
    """Return the cumulative signal shares [1000] fp32 of DEMO_SCHEDULER.

    Source: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020), equation 4, with betas
    linear in their square roots.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


def v_loss(
    predict: Predict, x0: Tensor, objects: Tensor, draw: Draw
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted squared error of v on one batch, and the plain one as a figure.

    Args:
        predict: runs in bf16 where that is faster.
        x0: [B,C,h,w] fp32 scaled latents.
        objects: [B,h,w], 1 where an object is, else 0.
        draw: gives noise and timesteps.

    Source: "Progressive Distillation for Fast Sampling of Diffusion Models" (Salimans and Ho
    2022), section 4: v = alpha * noise - sigma * x0.
    """
    count = len(x0)
    noise = torch.randn(x0.shape, generator=draw.torch)
    # Stratified timesteps: every batch sees the whole range.
    strata = (torch.arange(count) + torch.rand(count, generator=draw.torch)) / count
    timestep = (strata * 1000).long().clamp(0, 999)
    alpha_bar = demo_alphas_cumprod()[timestep][:, None, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    with torch.autocast("cpu", torch.bfloat16):
        v = predict(alpha * x0 + sigma * noise, timestep)
    squared = (v.float() - (alpha * noise - sigma * x0)) ** 2
    weight = 1 + _OBJECT_WEIGHT * objects.float()[:, None]
    total = (squared * weight).mean() / weight.mean()
    return total, {"mse": squared.mean().item()}


@torch.no_grad()
def sample(
    predict: Predict, shape: tuple[int, ...], *, steps: int, guidance_scale: float, seed: int
) -> Tensor:
    """Return scaled latents [B,C,h,w] by DDIM in bf16: good enough to watch a training by.

    Args:
        predict: is given each of the B latents twice, first to be seen without the text.
        shape: [B,C,h,w].
        steps: evaluations.
        guidance_scale: how far to go beyond what is seen without the text.
        seed: of the noise.
    """
    alphas_cumprod = demo_alphas_cumprod()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    timesteps = torch.linspace(999, 0, steps + 1).round().long()
    with torch.autocast("cpu", torch.bfloat16):
        for now, then in pairwise(timesteps):
            v = predict(torch.cat([x, x]), now.expand(2 * len(x))).float()
            without, with_text = v.chunk(2)
            v = without + guidance_scale * (with_text - without)
            a, b = alphas_cumprod[now], alphas_cumprod[then]
            x0 = a.sqrt() * x - (1 - a).sqrt() * v
            noise = a.sqrt() * v + (1 - a).sqrt() * x
            x = b.sqrt() * x0 + (1 - b).sqrt() * noise
    return x0
