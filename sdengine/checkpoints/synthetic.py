"""Synthetic checkpoints: seeded weights for benchmarks and tests that need no download."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.checkpoints.diffusers_folder import distilled_defaults
from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.schedules import noise_schedule_config
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.checkpoints.weights import shapes_of
from sdengine.checkpoints.writer import Description, Part, write_checkpoint
from sdengine.errors import ConfigError
from sdengine.models.configs import ARCHITECTURES, ModelArchitecture
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL
from sdengine.storage.checkpoint_folder import CheckpointFolder

_BIAS_STD = 0.05
_SEEDED_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def make_synthetic(
    arch: str | ModelArchitecture,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write a checkpoint of full size with seeded weights; its images are noise, but finite.

    One tensor at a time is made and written, so that the largest is all the memory it takes.

    Args:
        arch: a key of ARCHITECTURES, or another architecture.
        folder: the new folder.
        seed: the same seed gives the same weights.
        dtype: of the weights on disk.

    Raises:
        ConfigError: the architecture is unknown.
        OutputError: the folder exists already or cannot be written.
    """
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError.for_field("arch", arch, ", ".join(ARCHITECTURES))
        arch = ARCHITECTURES[arch]
    with torch.device("meta"):
        modules: dict[str, Any] = {
            part: CLIPTextEncoder(config)
            for part, config in zip(arch.text_parts, arch.text_encoders, strict=True)
        }
        modules |= {"unet": UNet2DConditionModel(arch.unet), "vae": AutoencoderKL(arch.vae)}
    scheduler = scheduler_config(arch)
    description = Description(
        scheduler_config=scheduler,
        tokenizer_files=read_tokenizer(CheckpointFolder(demo_tokenizer_dir()), "."),
        pad_tokens=dict(zip(arch.text_parts, arch.pad_tokens, strict=True)),
        defaults=distilled_defaults(arch.unet, scheduler),
        zero_empty_negative=len(arch.text_parts) > 1,
        requires_aesthetic_score=arch.requires_aesthetic_score,
    )
    parts = {
        name: Part(
            module.config.to_dict(),
            shapes_of(module),
            _tensors_of(module, len(_SEEDED_PARTS) * seed + _SEEDED_PARTS.index(name)),
        )
        for name, module in modules.items()
    }
    return write_checkpoint(folder, parts, description, dtype)


def scheduler_config(architecture: ModelArchitecture) -> dict[str, Any]:
    """Return the noise schedule that the architecture's published checkpoints carry."""
    return noise_schedule_config(architecture.prediction_type)


@torch.no_grad()
def seed_weights(module: nn.Module, seed: int) -> None:
    """Fill a module with the seeded weights of `seeded_tensors`.

    Args:
        module: on the CPU, in any float dtype.
        seed: the same seed gives the same weights.
    """
    parameters = dict(module.named_parameters())
    for name, values in seeded_tensors(module, seed):
        parameters[name].copy_(values)


def seeded_tensors(module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield fp32 weights that keep activations finite and near unit scale, one at a time.

    Products get normal weights of variance 1/fan_in, norms are near the identity, and biases are
    small but nonzero, so that a test against another implementation notices a forgotten one.

    Args:
        module: says names and shapes; may be on the meta device.
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
        yield name, values


def _tensors_of(module: nn.Module, seed: int) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    return lambda: seeded_tensors(module, seed)
