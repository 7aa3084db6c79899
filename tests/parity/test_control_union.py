"""Union ControlNets against diffusers': module, files, and what targets make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_checkpoints import make_tiny, save_union
from tolerances import assert_close

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.control_file import read_control_file
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.errors import CheckpointError
from sdengine.models.controlnet_union import ControlNetUnionConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("union")
    return folder, save_union(folder)


def inputs(kind: int, images: int = 1, kinds: int = 6) -> dict[str, torch.Tensor]:
    """What guidance gives: two rows of one image, whose texts differ."""
    g = torch.Generator().manual_seed(3)
    one = torch.randn(images, 4, 8, 16, generator=g).repeat(2, 1, 1, 1)
    picture = torch.rand(images, 3, 64, 128, generator=g).repeat(2, 1, 1, 1)
    rows = 2 * images
    return {
        "sample": one,
        "timestep": torch.full((rows,), 501.0),
        "encoder_hidden_states": torch.randn(rows, 77, 64, generator=g),
        "text_embeds": torch.randn(rows, 24, generator=g),
        "time_ids": torch.tensor([[64.0, 128, 0, 8, 64, 128]]).repeat(rows, 1),
        "controlnet_cond": picture,
        "control_type": torch.eye(kinds)[kind].repeat(rows, 1),
    }


def of_diffusers(theirs: Any, made: dict[str, torch.Tensor], kind: int) -> list[torch.Tensor]:
    added = {name: made[name] for name in ("text_embeds", "time_ids")}
    down, middle = theirs(
        made["sample"],
        made["timestep"],
        made["encoder_hidden_states"],
        [made["controlnet_cond"]],
        made["control_type"],
        [kind],
        added_cond_kwargs=added,
        return_dict=False,
    )
    return [*down, middle]


@pytest.mark.parametrize("kind", [0, 5])
@torch.no_grad()
def test_residuals_are_the_same(saved: tuple[Path, Any], kind: int) -> None:
    folder, theirs = saved
    ours = read_controlnet(folder).load("controlnet")
    made = inputs(kind)
    down, middle = ours(**made)
    expected = of_diffusers(theirs, made, kind)
    for found, wanted in zip([*down, middle], expected, strict=True):
        assert wanted.abs().max() > 0
        assert_close("controlnet", "float32", found, wanted)
    other, _ = ours(**{**made, "control_type": torch.eye(6)[kind - 1].repeat(2, 1)})
    assert not torch.allclose(other[0], down[0])


@torch.no_grad()
def test_an_image_does_not_depend_on_the_others_of_its_batch(saved: tuple[Path, Any]) -> None:
    """Where diffusers attends over the batch, and its images change each other."""
    folder, theirs = saved
    ours = read_controlnet(folder).load("controlnet")
    made = inputs(2, images=2)
    alone = {name: tensor[::2] for name, tensor in made.items()}
    _, both = ours(**made)
    _, first = ours(**alone)
    assert_close("controlnet", "float32", both[::2], first)
    assert_close("controlnet", "float32", first, of_diffusers(theirs, alone, 2)[-1])
    mixed = of_diffusers(theirs, made, 2)[-1][::2]
    assert not torch.allclose(mixed, first, rtol=1e-4, atol=1e-6)


def test_the_same_from_a_single_file(saved: tuple[Path, Any], tmp_path: Path) -> None:
    folder, theirs = saved
    save_file(theirs.state_dict(), tmp_path / "union.safetensors")
    base = load_checkpoint(make_tiny("tiny-sdxl", tmp_path / "base"))
    found = read_control_file(tmp_path / "union.safetensors", base)
    expected = read_controlnet(folder)
    config = found.controlnet_config
    assert isinstance(config, ControlNetUnionConfig) and config.num_trans_layer == 2
    state = found.load("controlnet").state_dict()
    for name, tensor in expected.load("controlnet").state_dict().items():
        assert torch.equal(state[name], tensor)
    made = inputs(1)
    with torch.no_grad():
        first, second = (one.load("controlnet")(**made)[1] for one in (found, expected))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_trans_channel": 32}, "num_trans_channel: 32 .* the first of block_out_channels, 16"),
        ({"num_trans_head": 3}, "num_trans_head: 3"),
        ({"num_control_type": 0}, "num_control_type: 0"),
        ({"addition_time_embed_dim": None, "addition_embed_type": None}, "addition_time_embed_dim"),
        ({"_class_name": ["ControlNetUnionModel"]}, "is not a ControlNetModel or ControlNetUnion"),
    ],
)
def test_configurations_of_no_network_are_refused(
    saved: tuple[Path, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    content = json.loads((saved[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(CheckpointError, match=said):
        read_controlnet(tmp_path)
