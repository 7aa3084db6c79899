"""Diffusion: latents noised for training, what a network is to predict of them, and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from sdengine.errors import ConfigError
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.training.loop import Draw

# Predicts v [B,C,h,w] of noised latents [B,C,h,w] at timesteps [B].
Predict = Callable[[Tensor, Tensor], Tensor]
_OBJECT_WEIGHT = 2.0  # added to the loss where an object is


@dataclass(frozen=True)
class Noised:
    """Latents at their timesteps.

    Args:
        x: [B,C,h,w] fp32.
        timestep: [B] int64.
        target: [B,C,h,w] fp32, what the network is to predict.
        weight: [B] fp32, of each one's loss.
    """

    x: Tensor
    timestep: Tensor
    target: Tensor
    weight: Tensor


class Noising:
    """The process that a network learns to undo.

    Args:
        schedule: of the checkpoint.
        noise_offset: deviation of what is added to the noise of a whole channel, so that pictures
            may become darker and brighter than the average.
        min_snr: signal-to-noise ratio from which on losses no longer count fully; 0 for none.

    Raises:
        ConfigError: the schedule is EDM's, whose networks predict something else.

    Source: "Denoising Diffusion Probabilistic Models" (Ho et al. 2020), equation 4; "Progressive
    Distillation for Fast Sampling of Diffusion Models" (Salimans and Ho 2022), section 4:
    v = alpha * noise - sigma * x0; "Efficient Diffusion Training via Min-SNR Weighting Strategy"
    (Hang et al. 2023), section 3.4.
    """

    def __init__(
        self, schedule: NoiseSchedule, *, noise_offset: float = 0.0, min_snr: float = 0.0
    ) -> None:
        if schedule.sigma_data is not None:
            raise ConfigError.for_field(
                "checkpoint", "a noise schedule of EDM", "betas, as Stable Diffusion has"
            )
        self.alphas_cumprod = torch.from_numpy(schedule.alphas_cumprod).float()
        self.prediction_type = schedule.prediction_type
        self.noise_offset, self.min_snr = noise_offset, min_snr

    def __call__(self, x0: Tensor, draw: Draw, *, early: float = 1.0, alike: int = 1) -> Noised:
        """Noise latents; timesteps are spread over the range.

        Args:
            x0: [B,C,h,w] fp32, scaled.
            draw: gives noise and timesteps.
            early: more than 1 has more of the timesteps with much noise; 1 has all as often.
            alike: neighbours in the batch that get the same noise and timestep.
        """
        count, total = len(x0) // alike, len(self.alphas_cumprod)
        noise = torch.randn((count, *x0.shape[1:]), generator=draw.torch)
        # Stratified timesteps: every batch sees the whole range.
        strata = (torch.arange(count) + torch.rand(count, generator=draw.torch)) / count
        timestep = (strata ** (1 / early) * total).long().clamp(0, total - 1)
        if self.noise_offset:
            shift = torch.randn((count, x0.shape[1], 1, 1), generator=draw.torch)
            noise = noise + self.noise_offset * shift
        noise, timestep = (one.repeat_interleave(alike, dim=0) for one in (noise, timestep))
        noise = noise.to(x0.device)
        signal = self.alphas_cumprod[timestep]
        alpha, sigma = (
            root[:, None, None, None].to(x0.device) for root in (signal.sqrt(), (1 - signal).sqrt())
        )
        target = {
            "epsilon": lambda: noise,
            "v_prediction": lambda: alpha * noise - sigma * x0,
            "sample": lambda: x0,
        }[self.prediction_type]()
        weight = self.weights(timestep).to(x0.device)
        return Noised(alpha * x0 + sigma * noise, timestep.to(x0.device), target, weight)

    def weights(self, timestep: Tensor) -> Tensor:
        """Return [B], what the loss at each timestep counts."""
        if not self.min_snr:
            return torch.ones(timestep.shape)
        signal = self.alphas_cumprod[timestep].double()
        snr = signal / (1 - signal)
        bounded = snr.clamp(max=self.min_snr)
        # Without any signal left the first is 0 / 0, and tends to 1.
        weight = {
            "epsilon": lambda: torch.where(snr > 0, bounded / snr.clamp(min=1e-30), 1.0),
            "v_prediction": lambda: bounded / (snr + 1),
            "sample": lambda: bounded,
        }[self.prediction_type]()
        return weight.float()


def demo_alphas_cumprod() -> Tensor:
    """Return the cumulative signal shares [1000] fp32 of DEMO_SCHEDULER."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0).float()


_DEMO_NOISING = Noising(
    NoiseSchedule(demo_alphas_cumprod().double().numpy(), prediction_type="v_prediction")
)


def v_loss(
    predict: Predict,
    x0: Tensor,
    objects: Tensor,
    draw: Draw,
    *,
    early: float = 1.0,
    alike: int = 1,
    apart: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted squared error of v on one batch, and the plain one as a figure.

    Args:
        predict: runs in bf16 where that is faster.
        x0: [B,C,h,w] fp32 scaled latents.
        objects: [B,h,w], 1 where an object is, else 0; more where more depends on it.
        draw: gives noise and timesteps.
        early, alike: see `Noising`.
        apart: [B,h,w], added to the weight of what is wrong of the difference between neighbours
            that are alike.
    """
    noised = _DEMO_NOISING(x0, draw, early=early, alike=alike)
    with torch.autocast("cpu", torch.bfloat16):
        v = predict(noised.x, noised.timestep)
    error = v.float() - noised.target
    squared = error**2
    weight = 1 + _OBJECT_WEIGHT * objects.float()[:, None]
    total = (squared * weight).mean() / weight.mean()
    if apart is not None:
        among = torch.unflatten(error, 0, (-1, alike))
        differing = (among - among.mean(dim=1, keepdim=True)).flatten(0, 1)
        total = total + (differing**2 * apart[:, None]).mean() / weight.mean()
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
