"""Hostile control networks: wrong names, shapes and values are refused as such."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.original_names import control_place
from support.tiny_architectures import TINY
from support.tiny_checkpoints import ADAPTERS, make_tiny, save_adapter, save_union

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.control_file import read_control_file
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.errors import SdengineError
from sdengine.models.controlnet import ControlNetModel

State = dict[str, torch.Tensor]
_TIMES = 12


def controlnet() -> State:
    network = ControlNetModel(TINY["tiny-sd15"].controlnet)
    seed_weights(network, seed=1)
    config = TINY["tiny-sd15"].unet
    return {control_place(name, config): t for name, t in network.state_dict().items()}


def spoilt(state: State, rng: random.Random) -> State:
    """Leave out, rename, or give other shapes to some tensors."""
    made = dict(state)
    for name in rng.sample(sorted(made), k=rng.randint(1, 4)):
        tensor = made.pop(name)
        match rng.randrange(4):
            case 0:
                numbers = [part for part in name.split(".") if part.isdigit()] or ["0"]
                far = rng.choice(["999", "1000000", "-1", "7"])
                made[name.replace(f".{rng.choice(numbers)}.", f".{far}.")] = tensor
            case 1:
                made[name] = torch.zeros([rng.randrange(3) for _ in range(rng.randrange(5))])
            case 2:
                made[name] = tensor.to(torch.int32)
    return made


@pytest.mark.parametrize("kind", ["controlnet", "union", *ADAPTERS])
def test_spoilt_files(tmp_path: Path, kind: str) -> None:
    if kind == "controlnet":
        state = controlnet()
    elif kind == "union":
        state = save_union(tmp_path / "made").state_dict()
    else:
        state = save_adapter(tmp_path / "made", kind).state_dict()
    base = None  # which tells what shapes do not
    if kind not in ADAPTERS:
        family = "tiny-sdxl" if kind == "union" else "tiny"
        base = load_checkpoint(make_tiny(family, tmp_path / "base"))
    save_file(state, tmp_path / "whole.safetensors")
    read_control_file(tmp_path / "whole.safetensors", base).load("controlnet")
    rng = random.Random(kind)
    refused = 0
    for number in range(_TIMES):
        path = tmp_path / f"{number}.safetensors"
        save_file(spoilt(state, rng), path)
        try:
            read_control_file(path, base).load("controlnet")
        except SdengineError as error:
            refused += 1
            assert path.name in str(error)
    assert refused >= _TIMES * 3 // 4


@pytest.mark.parametrize("kind", ["union", "tiny-light"])
def test_spoilt_configurations(tmp_path: Path, kind: str) -> None:
    (save_union(tmp_path) if kind == "union" else save_adapter(tmp_path, kind))
    content = json.loads((tmp_path / "config.json").read_text())
    rng = random.Random(kind)
    odd: list[Any] = [None, -1, 0, 10**9, 1e300, "x", [], [1], [[1]], {}, True, ["a"], 3.5]
    for key in sorted(content):
        for value in rng.sample(odd, k=2):
            (tmp_path / "config.json").write_text(json.dumps({**content, key: value}))
            with contextlib.suppress(SdengineError):
                read_controlnet(tmp_path).load("controlnet")
