"""Training of a tiny decoder: what the autoencoder's decoder makes, in a fraction of the work."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
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
_SIZE = 128
_POOL, _POOL_SEED = 3008, 8000  # scenes, which are encoded and decoded once, each at first use
_SHOWN = 16
_LAST_OF_BLOCK = ".conv.4"
_EDGE = 0.1  # by which neighbouring pixels differ, of 2


class TinyDecoderTask:
    """Teach a tiny decoder what the frozen one makes of the same latents.

    Args:
        parts: of the demo model.
        batch: pictures a step.
    """

    def __init__(self, parts: DemoParts, batch: int = 16) -> None:
        if batch < 1:
            raise ConfigError.for_field("batch", batch, "at least 1")
        torch.manual_seed(0)
        self.model: nn.Module = laid_out(begun(TinyAutoencoder(TINY_DECODER)))
        self.parts = parts
        self.batch = batch
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return L1 + gradient L1 + squares of one batch of scenes of the pool.

        What is near edges counts more, and large errors do: those of small shapes, which L1 alone
        leaves round.
        """
        shown = [self._example(draw.python.randrange(_POOL)) for _ in range(self.batch)]
        latents = torch.stack([latents for latents, _ in shown]).float()
        wanted = torch.stack([picture for _, picture in shown]).float() / 127.5 - 1
        latents = latents + _LATENT_NOISE * torch.randn(latents.shape, generator=draw.torch)
        error = _decoded(self.model, latents) - wanted
        weight = _near_edges(wanted)
        l1, gradient = absolute_errors(error * weight)
        total = l1 + gradient + 2 * (error**2 * weight).mean()
        return total, {"l1": l1.item(), "gradient": gradient.item()}

    def _example(self, index: int) -> tuple[Tensor, Tensor]:
        """Return latents [C,h,w] fp16 of a scene of the pool, and the picture [3,H,W] uint8."""
        if index not in self._known:
            draw = Draw.at(_POOL_SEED, index)
            drawn = render(random_scene(draw.python), draw.numpy, size=_SIZE)
            latents = self.parts.encode(to_tensor([drawn]))
            (picture,) = to_images(self.parts.decode(latents))
            self._known[index] = latents[0].half(), torch.from_numpy(picture).permute(2, 0, 1)
        return self._known[index]

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


def begun(model: TinyAutoencoder) -> TinyAutoencoder:
    """Give a network weights from which few steps teach it its task; return it.

    Activations keep their size through all layers, blocks hardly change what goes through them,
    and convolutions after upsampling pass it on, so that it begins as two layers would.

    Source: "Delving Deep into Rectifiers" (He et al. 2015); "Fixup Initialization" (Zhang et al.
    2019) for the blocks.
    """
    convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for name, conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if name.endswith(_LAST_OF_BLOCK):
                conv.weight.mul_(0.1)
            if conv.bias is None:
                nn.init.dirac_(conv.weight)
                conv.weight.add_(torch.randn_like(conv.weight), alpha=0.02)
            else:
                conv.bias.zero_()
        _, out = convs[-1]
        out.weight.mul_(0.3)
        if out.bias is not None:
            out.bias.fill_(0.5)  # grey
    return model


def _near_edges(pictures: Tensor) -> Tensor:
    """Return a weight [B,1,H,W] of 1 on the average, seven times as large near edges."""
    ranges = F.max_pool2d(pictures, 3, 1, 1) + F.max_pool2d(-pictures, 3, 1, 1)
    edges = ranges.amax(dim=1, keepdim=True) > _EDGE
    weight = 1 + 6 * F.max_pool2d(edges.float(), 9, 1, 4)
    return weight / weight.mean()


def _decoded(model: nn.Module, latents: Tensor) -> Tensor:
    assert isinstance(model, TinyAutoencoder)
    with torch.autocast("cpu", torch.bfloat16):
        return model.decode(latents).float()
