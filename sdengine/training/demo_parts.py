"""Parts of a trained demo model, frozen: what its variants start from and are trained beside."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.checkpoints import Checkpoint, demo_tokenizer_dir, load_checkpoint
from sdengine.errors import ConfigError
from sdengine.models.attention import set_attention_impl
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.text import first_end, padded_ids
from sdengine.training.unet import DEMO_SCHEDULER, DEMO_UNET


@dataclass
class DemoParts:
    """Hold the networks of a demo model, without gradients.

    Attributes:
        checkpoint: that they were read from.
        unet, vae, text_encoder: in fp32, with plain attention and laid out for a CPU.
        tokenizer: CLIP's.
    """

    checkpoint: Checkpoint
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextEncoder
    tokenizer: ClipTokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str] = "demo") -> DemoParts:
        """Read a folder that ``sdengine train save`` wrote, or the demo model itself.

        Raises:
            CheckpointError: it is damaged.
            ConfigError: it is another model.
        """
        checkpoint = load_checkpoint(path)
        schedule = {key: checkpoint.scheduler_config.get(key) for key in _OF_THE_SCHEDULE}
        wanted = {key: DEMO_SCHEDULER[key] for key in _OF_THE_SCHEDULE}
        if checkpoint.unet_config != DEMO_UNET or schedule != wanted:
            raise ConfigError.for_field(
                "base", str(path), "'demo', or a folder that `sdengine train save` wrote"
            )
        folder = demo_tokenizer_dir()
        unet, vae = checkpoint.unet(), checkpoint.vae()
        set_attention_impl(unet, "plain")
        return cls(
            checkpoint,
            laid_out(unet),
            laid_out(vae),
            checkpoint.text_encoder(),
            ClipTokenizer(folder / "vocab.json", folder / "merges.txt"),
        )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the prompt embeddings [B,77,D] of texts."""
        ids = padded_ids(self.tokenizer.encode, texts)
        with torch.autocast("cpu", torch.bfloat16):
            _, normed, _ = self.text_encoder.forward_ids(ids, first_end(ids))
        embeds: Tensor = normed[-1].float()
        return embeds

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return scaled latents [B,C,h,w] fp32, the mean, of pictures [B,3,H,W] in [-1,1]."""
        x = x.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            moments = self.vae.encode(x)
        return moments.chunk(2, dim=1)[0].float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures [B,3,H,W] fp32, nominally in [-1,1], of scaled latents [B,C,h,w]."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.vae.decode(latents / self.vae.config.scaling_factor).float()


_OF_THE_SCHEDULE = ("beta_start", "beta_end", "beta_schedule", "prediction_type")


def laid_out(module: Any) -> Any:
    """Lay a network's weights out as makes narrow convolutions fast on a CPU."""
    assert isinstance(module, nn.Module)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
