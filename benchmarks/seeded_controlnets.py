"""ControlNets with seeded weights, and the hints that they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sdengine.models.unet import UNetConfig

Picture = NDArray[np.uint8]


def edges(side: int) -> Picture:
    """Return bright shapes on black [side,side,3]."""
    y, x = np.mgrid[0:side, 0:side]
    lit = (np.sin(x / 7) * np.cos(y / 5) > 0.3).astype(np.uint8) * 255
    return np.repeat(lit[..., None], 3, axis=2)


def write_controlnet(folder: Path, unet: UNetConfig, seed: int) -> None:
    """Write a seeded ControlNet for a U-Net, as diffusers has it, in fp16."""
    import torch

    from sdengine.checkpoints.synthetic import seed_weights
    from sdengine.checkpoints.weights import save_tensors
    from sdengine.models.controlnet import ControlNetConfig, ControlNetModel

    config = ControlNetConfig(unet=unet)
    module = ControlNetModel(config)
    seed_weights(module, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(torch.float16) for name, tensor in module.state_dict().items()}
    save_tensors(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
