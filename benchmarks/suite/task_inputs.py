"""Inputs of tasks: the picture, mask and ControlNet that every side is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.suite.setting import STRENGTH, Setting
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.models.configs import ModelArchitecture

Picture = NDArray[np.uint8]
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


def hint(side: int) -> Picture:
    """Return bright shapes on black [H,W,3], as edges are."""
    y, x = np.mgrid[0:side, 0:side]
    lit = (np.sin(x / 7) * np.cos(y / 5) > 0.3).astype(np.uint8) * 255
    return np.repeat(lit[..., None], 3, axis=2)


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
        return {"controls": (Control(CONTROL, hint(side)),)}
    return {}


def controlnet_folder(setting: Setting, cache: Path) -> Path:
    """Return where the ControlNet of a setting's architecture is, in diffusers' layout."""
    return cache / f"{setting.arch}-controlnet"


def build_flags(setting: Setting, cache: Path) -> tuple[str, ...]:
    """Return what `sdengine build` needs besides, writing a seeded ControlNet that is not there.

    Raises:
        ConfigError: the task needs a ControlNet, and there is none for the architecture.
    """
    if setting.task != "control":
        return ()
    folder = controlnet_folder(setting, cache)
    if not (folder / "config.json").exists():
        _write_controlnet(_architecture(setting), folder)
    return ("--control", f"{CONTROL}={folder}")


def _write_controlnet(architecture: ModelArchitecture, folder: Path) -> None:
    import torch

    from sdengine.checkpoints.synthetic import seed_weights
    from sdengine.checkpoints.weights import save_tensors
    from sdengine.models.controlnet import ControlNetModel

    module = ControlNetModel(architecture.controlnet)
    seed_weights(module, seed=1)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(torch.float16) for name, tensor in module.state_dict().items()}
    save_tensors(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(architecture.controlnet.to_dict()))


def _architecture(setting: Setting) -> ModelArchitecture:
    from sdengine.benchmarks.tiny import TINY_SD15
    from sdengine.models.configs import ARCHITECTURES

    known = {**ARCHITECTURES, "tiny": TINY_SD15}
    if setting.checkpoint is not None or setting.arch not in known:
        raise ConfigError.for_field(
            "task", setting.task, f"text, image, inpaint with {setting.arch}",
            "Synthetic ControlNets are those of sd15, sd21, sdxl and tiny.",
        )  # fmt: skip
    return known[setting.arch]
