"""Controls of requests in tests: a checkpoint with them, their pictures, and how often they ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.tiny_checkpoints import make_tiny, save_controlnet

import sdengine
from sdengine import Control
from sdengine.bundle.controls import control_network

CANNY = control_network("canny")
Array = np.ndarray[Any, Any]
SEEDS = {"canny": 31, "pose": 32, "untrained": None}


def make_steered(folder: Path, family: str, *names: str) -> Path:
    """Write a checkpoint and ControlNets of these names into a folder, which is returned."""
    make_tiny(family, folder / "checkpoint", seed=3, dtype=torch.float32)
    for name in names:
        save_controlnet(folder / name, family, seed=SEEDS[name])
    return folder


def build_steered(folder: Path, target: str, *names: str, **options: Any) -> Path:
    """Build a bundle of what `make_steered` wrote; return its place."""
    controls = {name: folder / name for name in names}
    given: dict[str, Any] = {"resolutions": [64, (128, 64)], "precision": "fp32", **options}
    sdengine.build(
        folder / "checkpoint", folder / target, target=target, controls=controls, **given
    )
    return folder / target


def edges(width: int = 64, height: int = 64) -> Array:
    """Draw bright shapes on black."""
    y, x = np.mgrid[0:height, 0:width]
    lit = (np.sin(x / 7) * np.cos(y / 5) > 0.3).astype(np.uint8) * 255
    return np.repeat(lit[..., None], 3, axis=2)


def canny(**fields: Any) -> Control:
    """Ask for the control canny."""
    return Control(**{"network": "canny", "image": edges(), **fields})


def calls(result: Any, network: str = CANNY) -> int:
    """Count the runs of a control's network."""
    return int(result.timings.stages[network].calls) if network in result.timings.stages else 0


def psnr_db(found: Array, wanted: Array) -> float:
    """Compare pictures of values from 0 to 255."""
    error = np.square(found.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
