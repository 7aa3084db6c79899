"""Seeded checkpoints of every family, small enough to export in a second."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from support.tiny_architectures import TINY, TINY_SDXL

from sdengine.checkpoints.synthetic import make_synthetic, seed_weights
from sdengine.models.controlnet import ControlNetModel

FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner", "tiny-lcm", "controlnet")


def make_tiny(
    name: str, folder: str | os.PathLike[str], *, seed: int = 0, dtype: torch.dtype = torch.float16
) -> Path:
    """Write a checkpoint of a tiny architecture; see `make_synthetic`."""
    return make_synthetic(TINY[name], folder, seed=seed, dtype=dtype)


def save_controlnet(folder: Path) -> Path:
    """Write a ControlNet with diffusers, seeded, as its users would have it."""
    from diffusers import ControlNetModel as DiffusersControlNet

    ours = ControlNetModel(TINY_SDXL.controlnet)
    seed_weights(ours, seed=31)
    theirs = DiffusersControlNet.from_config(TINY_SDXL.controlnet.to_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.save_pretrained(folder)
    return folder
