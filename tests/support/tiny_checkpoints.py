"""Seeded checkpoints of every family, small enough to export in a second."""

from __future__ import annotations

from pathlib import Path

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.configs import TINY_SDXL
from sdengine.models.controlnet import ControlNetModel

FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner", "tiny-lcm", "controlnet")


def save_controlnet(folder: Path) -> Path:
    """Write a ControlNet with diffusers, seeded, as its users would have it."""
    from diffusers import ControlNetModel as DiffusersControlNet

    ours = ControlNetModel(TINY_SDXL.controlnet)
    seed_weights(ours, seed=31)
    theirs = DiffusersControlNet.from_config(TINY_SDXL.controlnet.to_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.save_pretrained(folder)
    return folder
