"""Latents of rendered scenes, encoded once and kept on disk for the U-Net's training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdengine.errors import CheckpointError
from sdengine.models.vae import AutoencoderKL
from sdengine.storage.whole_file import whole_file
from sdengine.training.loop import Draw
from sdengine.training.scenes import Scene, random_scene, render
from sdengine.training.vae import to_tensor

_SCENE_SEED = 2024
_BATCH = 16


@dataclass
class LatentSet:
    """Hold the latents of scenes at one picture size.

    Attributes:
        size: side of the pictures in pixels.
        latents: [N,C,h,w] fp16, unscaled posterior means.
        weights: [N,h,w] fp16, 1 where an object is, else 0.
        scenes: the N scenes, in order.
    """

    size: int
    latents: Tensor
    weights: Tensor
    scenes: list[Scene]

    @property
    def std(self) -> float:
        """Standard deviation over all latents; its inverse is the scaling factor."""
        return self.latents.float().std().item()


def encode_scenes(
    vae: AutoencoderKL,
    count: int,
    size: int,
    path: Path,
    report: Callable[[int, int], None] | None = None,
) -> LatentSet:
    """Encode the first `count` training scenes at a size, or read them if the file has them.

    Raises:
        CheckpointError: the file holds another number or size of latents.
    """
    rngs = [Draw.at(_SCENE_SEED + size, i) for i in range(count)]
    scenes = [random_scene(draw.python) for draw in rngs]
    side = size // vae.config.downscale
    shape = (count, vae.config.latent_channels, side, side)
    if path.exists():
        latents = torch.load(path, weights_only=True)
        if tuple(latents.shape) != shape:
            raise CheckpointError(
                f"{path} holds latents of shape {tuple(latents.shape)}, expected {shape}; delete it"
            )
    else:
        latents = torch.empty(shape, dtype=torch.float16)
        for i in range(0, count, _BATCH):
            part = slice(i, i + _BATCH)
            pictures = [
                render(s, d.numpy, size=size) for s, d in zip(scenes[part], rngs[part], strict=True)
            ]
            x = to_tensor(pictures).to(memory_format=torch.channels_last)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                latents[part] = vae.encode(x).chunk(2, dim=1)[0].half()
            if report is not None:
                report(min(i + _BATCH, count), count)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            torch.save(latents, file)
    weights = torch.from_numpy(np.stack([object_cells(s, side) for s in scenes]))
    return LatentSet(size, latents, weights, scenes)


def object_cells(scene: Scene, side: int) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    """Return [side,side], 1 in latent cells where an object is or nearly is."""
    axis = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(axis, axis)
    cells = np.zeros((side, side), np.float16)
    for o in scene.objects:
        cells[np.maximum(np.abs(x - o.x), np.abs(y - o.y)) < o.radius + 0.06] = 1
    return cells
