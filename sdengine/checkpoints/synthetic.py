"""Seeded weights in a published architecture: for benchmarks and tests that need no download."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.writer import save_checkpoint
from sdengine.errors import ConfigError
from sdengine.models.configs import FAMILIES, ModelFamily
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

# Without the suffix of the tiny Stable Diffusion 1, which most tests take.
ARCHITECTURES: dict[str, ModelFamily] = {
    ("tiny" if name == "tiny-sd15" else name): family for name, family in FAMILIES.items()
}
_BIAS_STD = 0.05


def make_synthetic(
    arch: str,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint of full size with seeded weights; its images are noise, but finite.

    Args:
        arch: a key of ARCHITECTURES.
        folder: the new folder.
        seed: the same seed gives the same weights.
        dtype: of the weights on disk.

    Raises:
        ConfigError: the architecture is unknown.
        OutputError: the folder exists already or cannot be written.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError.for_field("arch", arch, ", ".join(ARCHITECTURES))
    family = ARCHITECTURES[arch]
    kinds: dict[str, tuple[Any, Any]] = {
        "unet": (UNet2DConditionModel, family.unet),
        "vae": (AutoencoderKL, family.vae),
        **{
            part: (CLIPTextEncoder, config)
            for part, config in zip(family.text_parts, family.text_encoders, strict=True)
        },
    }
    modules: dict[str, Any] = {"text_encoder": None}
    for index, (part, (module_class, config)) in enumerate(kinds.items()):
        # Made on the meta device: the default initialisation would cost seconds and be thrown away.
        with torch.device("meta"):
            module: nn.Module = module_class(config)
        modules[part] = module.to(dtype).to_empty(device="cpu")
        seed_weights(modules[part], 3 * seed + index)
    return save_checkpoint(
        folder,
        **modules,
        tokenizer_dir=demo_tokenizer_dir(),
        scheduler_config=scheduler_config(family),
        dtype=dtype,
        pad_tokens=dict(zip(family.text_parts, family.pad_tokens, strict=True)),
        requires_aesthetic_score=family.requires_aesthetic_score,
    )


def scheduler_config(family: ModelFamily) -> dict[str, Any]:
    """Return the noise schedule that the family's published checkpoints carry."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": family.prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


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
