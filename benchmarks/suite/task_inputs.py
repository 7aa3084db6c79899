"""Inputs of tasks: the picture, mask and ControlNet that every side is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.seeded_controlnets import Picture, edges
from sdengine.benchmarks.suite.arithmetic import unet_config
from sdengine.benchmarks.suite.setting import STRENGTH, Setting

CONTROL = "canny"  # what the ControlNet is called


def picture(side: int) -> Picture:
    """Return smooth colours [H,W,3] to start from."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = (np.sin(9 * x + 2 * y), np.sin(7 * y - 3 * x), np.cos(5 * x * y))
    return np.stack([127.5 + 127.5 * wave for wave in waves], axis=2).astype(np.uint8)


def mask(side: int) -> NDArray[np.uint8]:
    """Return a mask [H,W]: a square in the middle, 255 where a new picture is wanted."""
    found = np.zeros((side, side), np.uint8)
    found[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    return found


def given_fields(setting: Setting) -> dict[str, Any]:
    """Return what a request of ours has besides for the setting's task."""
    from sdengine.request.control import Control

    side = setting.resolution
    # As diffusers draws: from the encoder's distribution, all noise by one generator on a CPU.
    picked = {"image": picture(side), "strength": STRENGTH, "encode": "sample"}
    if setting.task == "image":
        return picked
    if setting.task == "inpaint":
        return {**picked, "mask": mask(side), "mask_blur": 0, "mask_blend": "latents"}
    if setting.task == "control":
        return {"controls": (Control(CONTROL, edges(side)),)}
    return {}


def controlnet_folder(setting: Setting, cache: Path) -> Path:
    """Return where the ControlNet of a setting's architecture is, in diffusers' layout."""
    return cache / f"{setting.arch}-controlnet"


def build_flags(setting: Setting, cache: Path) -> tuple[str, ...]:
    """Return what `sdengine build` needs besides, writing a seeded ControlNet that is not there."""
    if setting.task != "control":
        return ()
    folder = controlnet_folder(setting, cache)
    if not (folder / "config.json").exists():
        from sdengine.benchmarks.seeded_controlnets import write_controlnet

        write_controlnet(folder, unet_config(setting), seed=1)
    return ("--control", f"{CONTROL}={folder}")
