"""Training of the autoencoder: crops first, then whole pictures of several sizes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sdengine.models.vae import AutoencoderKL, VAEConfig, sample_latents
from sdengine.training.loop import Draw
from sdengine.training.scenes import Image, random_scene, render
from sdengine.training.scoring import score, summarise

# Two groups only: with more, GroupNorm normalises flat colours away. The scaling factor is
# measured after training.
DEMO_VAE = VAEConfig(
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    norm_num_groups=2,
    sample_size=128,
    scaling_factor=1.0,
)
_KL_WEIGHT = 5e-4
_CROP, _CROPS = 64, 16
_WHOLE_FROM = 0.75  # progress from which whole pictures are shown
_WHOLE_BATCH = {128: 4, 192: 2, 256: 1}


class VAETask:
    """Train a whole autoencoder, or its decoder alone on slightly noisy latents.

    Args:
        model: the autoencoder.
        decoder_only: freeze the encoder, so that latents already made stay valid.
        latent_noise: standard deviation of the noise added to latents when decoder_only.
    """

    def __init__(
        self, model: AutoencoderKL, *, decoder_only: bool = False, latent_noise: float = 0.08
    ) -> None:
        # channels_last makes the convolutions of these narrow networks about 1.5x faster on a CPU.
        self.model: nn.Module = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autoencoder = model
        self.decoder_only = decoder_only
        self.latent_noise = latent_noise
        if decoder_only:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return L1 + gradient L1 + KL of a batch of crops or whole pictures."""
        x = to_tensor(_batch(draw, whole=progress >= _WHOLE_FROM))
        with torch.autocast("cpu", torch.bfloat16):
            moments = self.autoencoder.encode(x)
            if self.decoder_only:
                mean = moments.chunk(2, dim=1)[0].detach()
                noise = torch.randn(mean.shape, generator=draw.torch)
                z = mean + self.latent_noise * noise
            else:
                z = sample_latents(moments, draw.torch)
            y = self.autoencoder.decode(z)
        l1, gradient = absolute_errors(y.float() - x)
        total = l1 + (0.5 + 0.5 * progress) * gradient
        figures = {"l1": l1.item(), "gradient": gradient.item()}
        if not self.decoder_only:
            kl = kl_divergence(moments.float())
            total = total + _KL_WEIGHT * kl
            figures["kl"] = kl.item()
        return total, figures

    def sheet(self, model: nn.Module) -> Image:
        """Return originals above reconstructions, eight to a row."""
        draw = Draw.at(99, 0)
        images = [render(random_scene(draw.python), draw.numpy) for _ in range(16)]
        rebuilt = reconstruct(model, images)
        rows = [images[:8], rebuilt[:8], images[8:], rebuilt[8:]]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def absolute_errors(error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean absolute error of pictures, and that of neighbours' differences.

    The second sharpens edges.
    """
    gradient = error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()
    return error.abs().mean(), gradient


def kl_divergence(moments: Tensor) -> Tensor:
    """Return the mean KL divergence of the latents' Gaussian from the unit Gaussian."""
    mean, log_variance = moments.chunk(2, dim=1)
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


def new_demo_vae() -> AutoencoderKL:
    """Return an untrained demo autoencoder whose latents start with little noise."""
    torch.manual_seed(0)
    model = AutoencoderKL(DEMO_VAE)
    with torch.no_grad():
        bias = model.quant_conv.bias
        assert bias is not None
        bias[DEMO_VAE.latent_channels :] = -4.0
    return model


def to_tensor(images: list[Image]) -> Tensor:
    """Return [B,3,H,W] fp32 in [-1,1] of uint8 images [H,W,3]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: Tensor) -> list[Image]:
    """Return uint8 images [H,W,3] of [B,3,H,W] nominally in [-1,1]."""
    pixels = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def reconstruct(model: nn.Module, images: list[Image], batch: int = 16) -> list[Image]:
    """Encode and decode images [H,W,3] uint8 of equal size."""
    out: list[Image] = []
    for i in range(0, len(images), batch):
        out += to_images(model(to_tensor(images[i : i + batch])))
    return out


def reconstruction_scores(model: nn.Module, count: int, size: int = 128) -> dict[str, float]:
    """Score reconstructions of held-out scenes, half with one object, in percent, and the PSNR."""
    draw = Draw.at(5, 0)
    scenes = [random_scene(draw.python, num_objects=1 + i % 2, held_out=True) for i in range(count)]
    images = [render(s, draw.numpy, size=size) for s in scenes]
    rebuilt = reconstruct(model, images)
    squared = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(images, rebuilt, strict=True)]
    psnr = float(np.mean(10 * np.log10(255**2 / np.maximum(squared, 1e-9))))
    scores = summarise(score(b, s) for b, s in zip(rebuilt, scenes, strict=True))
    return {**scores, "psnr": round(psnr, 2)}


def _batch(draw: Draw, *, whole: bool) -> list[Image]:
    if whole:
        size = draw.python.choices(list(_WHOLE_BATCH), weights=(0.7, 0.2, 0.1))[0]
        return [
            render(random_scene(draw.python), draw.numpy, size=size)
            for _ in range(_WHOLE_BATCH[size])
        ]
    crops: list[Image] = []
    while len(crops) < _CROPS:
        scene = random_scene(draw.python)
        for thing in scene.objects:
            # Around an object, off centre: edges are what is hard.
            left, top = (
                min(max(round(c * 128) + draw.python.randint(-24, 24) - _CROP // 2, 0), 128 - _CROP)
                for c in (thing.x, thing.y)
            )
            crops.append(render(scene, draw.numpy, window=(left, top, _CROP)))
    return crops[:_CROPS]
