"""Seeded checkpoints of every family, small enough to export in a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from support.tiny_architectures import TINY

from sdengine.checkpoints.synthetic import make_synthetic, seed_weights
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.controlnet_union import ControlNetUnionConfig
from sdengine.models.t2i_adapter import T2IAdapterConfig

FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner", "tiny-lcm", "controlnet")


def make_tiny(
    name: str, folder: str | os.PathLike[str], *, seed: int = 0, dtype: torch.dtype = torch.float16
) -> Path:
    """Write a checkpoint of a tiny architecture; see `make_synthetic`."""
    return make_synthetic(TINY[name], folder, seed=seed, dtype=dtype)


def save_controlnet(folder: Path, family: str = "tiny-sdxl", *, seed: int | None = 31) -> Path:
    """Write a ControlNet with diffusers, as its users would have it; without a seed untrained."""
    from diffusers import ControlNetModel as DiffusersControlNet

    config = TINY[family].controlnet
    ours = ControlNetModel(config)
    if seed is not None:
        seed_weights(ours, seed=seed)
    theirs = DiffusersControlNet.from_config(config.to_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.save_pretrained(folder)
    return folder


def save_union(folder: Path, family: str = "tiny-sdxl", kinds: int = 6) -> Any:
    """Write a union ControlNet with diffusers, seeded; return it."""
    from diffusers import ControlNetUnionModel

    config = ControlNetUnionConfig(
        unet=TINY[family].unet,
        conditioning_embedding_out_channels=(4, 8, 8, 16),
        num_control_type=kinds,
        num_trans_channel=16,
        num_trans_layer=2,
        num_proj_channel=16,
    )
    theirs: Any = ControlNetUnionModel.from_config(config.to_dict())
    seed_weights(theirs, seed=37)
    theirs.eval().save_pretrained(folder)
    return theirs


ADAPTERS = {
    "tiny": T2IAdapterConfig(channels=(16, 32, 48, 48)),
    "tiny-light": T2IAdapterConfig(
        channels=(16, 32, 48), num_res_blocks=3, adapter_type="light_adapter", in_channels=1
    ),
    "tiny-sdxl": T2IAdapterConfig(
        channels=(16, 32, 48, 48), downscale_factor=16, adapter_type="full_adapter_xl"
    ),
}


def save_adapter(folder: Path, name: str, *, seed: int = 41) -> Any:
    """Write one of ADAPTERS with diffusers, seeded; return it."""
    from diffusers import T2IAdapter

    theirs: Any = T2IAdapter.from_config(ADAPTERS[name].to_dict())
    seed_weights(theirs, seed=seed)
    theirs.eval().save_pretrained(folder)
    return theirs
