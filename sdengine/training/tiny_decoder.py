"""Training of a tiny decoder: what the autoencoder's decoder makes, in a fraction of the work."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.tiny_vae import TinyAutoencoder, TinyVAEConfig
from sdengine.training.demo_parts import DemoParts, laid_out
from sdengine.training.loop import Draw
from sdengine.training.scenes import Image, random_scene, render
from sdengine.training.vae import absolute_errors, to_images, to_tensor

# The published networks' layout, a quarter as wide, and without their encoder.
TINY_DECODER = TinyVAEConfig(
    encoder_block_out_channels=(),
    decoder_block_out_channels=(16, 16, 16, 16),
    num_encoder_blocks=(),
    num_decoder_blocks=(3, 3, 3, 1),
)
_LATENT_NOISE = 0.05  # generated latents are not quite what the encoder gives
_SHARES = {128: 0.8, 192: 0.12, 256: 0.08}
_SHOWN = 16


class TinyDecoderTask:
    """Teach a tiny decoder what the frozen one makes of the same latents.

    Args:
        parts: of the demo model.
        batch: pictures a step at 128 pixels; larger ones are fewer.
    """

    def __init__(self, parts: DemoParts, batch: int = 8) -> None:
        if batch < 1:
            raise ConfigError.for_field("batch", batch, "at least 1")
        torch.manual_seed(0)
        self.model: nn.Module = laid_out(TinyAutoencoder(TINY_DECODER))
        self.parts = parts
        self.batch = batch

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return L1 + gradient L1 of one batch of scenes drawn anew."""
        size = draw.python.choices(list(_SHARES), list(_SHARES.values()))[0]
        count = max(1, round(self.batch * (128 / size) ** 2))
        scenes = [random_scene(draw.python) for _ in range(count)]
        x = to_tensor([render(s, draw.numpy, size=size) for s in scenes])
        latents = self.parts.encode(x)
        latents = latents + _LATENT_NOISE * torch.randn(latents.shape, generator=draw.torch)
        wanted = self.parts.decode(latents).clamp(-1, 1)
        l1, gradient = absolute_errors(_decoded(self.model, latents) - wanted)
        return l1 + gradient, {"l1": l1.item(), "gradient": gradient.item()}

    @torch.no_grad()
    def sheet(self, model: nn.Module) -> Image:
        """Return what the decoder makes of held-out scenes above what the tiny one makes."""
        draw = Draw.at(99, 0)
        scenes = [random_scene(draw.python, held_out=True) for _ in range(_SHOWN)]
        latents = self.parts.encode(to_tensor([render(s, draw.numpy) for s in scenes]))
        wanted, found = (
            to_images(y) for y in (self.parts.decode(latents), _decoded(model, latents))
        )
        rows = [wanted[:8], found[:8], wanted[8:], found[8:]]
        return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _decoded(model: nn.Module, latents: Tensor) -> Tensor:
    assert isinstance(model, TinyAutoencoder)
    with torch.autocast("cpu", torch.bfloat16):
        return model.decode(latents).float()
