"""Control networks in single files: what diffusers' converter makes of them, and sums are sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import save_file
from support.original_names import control_place
from support.tiny_architectures import TINY
from support.tiny_checkpoints import make_tiny, save_controlnet
from tolerances import assert_close

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.control_file import read_control_file
from sdengine.checkpoints.controlnet import ControlCheckpoint, read_controlnet
from sdengine.checkpoints.controls import open_controls
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.errors import CheckpointError
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel

FAMILIES = ("tiny-sd15", "tiny-sd21", "tiny-sdxl")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, State]:
    """A checkpoint, and a ControlNet for it."""
    folder = make_tiny(request.param, tmp_path_factory.mktemp("base") / "tiny")
    network = ControlNetModel(TINY[request.param].controlnet)
    seed_weights(network, seed=31)
    return load_checkpoint(folder), network.state_dict()


def original(base: Checkpoint, state: State, prefix: str = "control_model.") -> State:
    return {prefix + control_place(name, base.unet_config): t for name, t in state.items()}


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name


@pytest.mark.parametrize(("prefix", "ending"), [("control_model.", ".pth"), ("", ".safetensors")])
def test_original_names(
    made: tuple[Checkpoint, State], tmp_path: Path, prefix: str, ending: str
) -> None:
    base, state = made
    path = tmp_path / f"control{ending}"
    file = original(base, state, prefix)
    if prefix:  # as the first files were published: together with all of the model
        file["model.diffusion_model.out.2.bias"] = torch.zeros(4)
    if ending == ".pth":
        torch.save(file, path)
    else:
        save_file(file, path)
    found = read_control_file(path, base)
    config = found.control_config
    assert isinstance(config, ControlNetConfig)
    assert config.unet.level(0, ()) == base.unet_config.level(0, ())
    loaded = found.load("controlnet")
    assert_same(loaded.state_dict(), state)
    theirs: Any = convert_controlnet_checkpoint(file, {"layers_per_block": 2})
    # SDXL's added conditioning is passed over there.
    assert_same(theirs, {n: t for n, t in state.items() if not n.startswith("add_embedding.")})
    assert len(found.ignored) == bool(prefix)


def test_names_of_diffusers(made: tuple[Checkpoint, State], tmp_path: Path) -> None:
    base, state = made
    prefix = "controlnet." if base.family == "sd2" else ""
    path = tmp_path / "control.safetensors"
    save_file({prefix + name: tensor for name, tensor in state.items()}, path)
    found = read_control_file(path, base)
    assert_same(found.load("controlnet").state_dict(), state)
    expected = TINY[f"tiny-{base.family.replace('sd1', 'sd15').replace('sd2', 'sd21')}"].controlnet
    config = found.control_config
    assert isinstance(config, ControlNetConfig)
    network, same = (ControlNetModel(c) for c in (config, expected))
    for one in (network, same):
        one.load_state_dict(state)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([7.0]),
        "encoder_hidden_states": torch.randn(1, 77, base.unet_config.cross_attention_dim),
        "controlnet_cond": torch.rand(1, 3, 64, 64),
    }
    if base.family == "sdxl":
        inputs |= {"text_embeds": torch.randn(1, 24), "time_ids": torch.full((1, 6), 64.0)}
    with torch.no_grad():
        assert torch.equal(network(**inputs)[1], same(**inputs)[1])  # heads are not in any shape


@pytest.mark.parametrize("made", ["tiny-sd15"], indirect=True)
def test_a_difference_is_added_to_the_unet_that_it_was_made_of(
    made: tuple[Checkpoint, State], tmp_path: Path
) -> None:
    base, state = made
    unet = dict(base.tensors("unet"))
    difference = {n: t - unet[n].float() if n in unet else t for n, t in state.items()}
    assert any(name in unet for name in difference)
    file = {**original(base, difference), "difference": torch.zeros(())}
    save_file(file, tmp_path / "diff.safetensors")
    found = read_control_file(tmp_path / "diff.safetensors", base)
    for name, tensor in found.load("controlnet").state_dict().items():
        torch.testing.assert_close(tensor, state[name].reshape(tensor.shape), rtol=1e-6, atol=1e-6)
    with pytest.raises(
        CheckpointError, match=r"differences to a U-Net.*together with a checkpoint"
    ):
        read_other(tmp_path, {**state, "difference": torch.zeros(())})
    whole = read_other(tmp_path, {k: v for k, v in file.items() if k != "difference"}, base)
    sums, plain = (one.load("controlnet").state_dict() for one in (found, whole))
    assert not torch.equal(sums["conv_in.weight"], plain["conv_in.weight"])
    assert torch.equal(sums["controlnet_mid_block.weight"], plain["controlnet_mid_block.weight"])
    assert found.part_sha256("controlnet") != whole.part_sha256("controlnet")


def read_other(folder: Path, state: State, base: Checkpoint | None = None) -> Any:
    save_file(state, folder / "other.safetensors")
    return read_control_file(folder / "other.safetensors", base)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"lora_controlnet": 0, "input_blocks.0.0.weight": 0}, "marks a Control-LoRA, whose ranks"),
        ({"lllite_unet_input_blocks_4_1.up.weight": 0}, "marks a ControlNet-LLLite"),
        ({"ip_adapter.1.to_k_ip.weight": 0, "image_proj.norm.weight": 0}, "marks an IP-Adapter"),
        ({"model.diffusion_model.out.2.bias": 0}, "neither a ControlNet nor a T2I-Adapter"),
        (
            {"zero_convs.0.0.weight": 0},
            "'input_blocks.1.0.in_layers.0.weight' is missing. The file",
        ),
        ({"controlnet_cond_embedding.conv_in.weight": 0}, "'conv_in.weight' is missing. The file"),
    ],
)
def test_other_kinds_and_incomplete_files_are_named(
    tmp_path: Path, state: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_other(tmp_path, {name: torch.zeros(4) for name in state})


@pytest.mark.parametrize("made", ["tiny-sd15"], indirect=True)
def test_shapes_of_no_network_are_refused(tmp_path: Path, made: tuple[Checkpoint, State]) -> None:
    base, state = made
    wrong = {**original(base, state), "control_model.middle_block_out.0.weight": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match=r"'controlnet_mid_block\.weight' has shape"):
        read_other(tmp_path, wrong, base).load("controlnet")
    flat = {**original(base, state), "control_model.input_blocks.0.0.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"'conv_in\.weight' has shape"):
        read_other(tmp_path, flat, base)


def test_a_network_that_reads_bgr_is_turned_round(tmp_path: Path) -> None:
    """Against diffusers, which turns the picture's channels."""
    theirs: Any = diffusers.ControlNetModel.from_pretrained(save_controlnet(tmp_path, "tiny"))
    theirs.register_to_config(controlnet_conditioning_channel_order="bgr")
    theirs.save_pretrained(tmp_path)
    ours = read_controlnet(tmp_path).load("controlnet")
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    picture, timestep = torch.rand(1, 3, 64, 64), torch.tensor([50.0])
    with torch.no_grad():
        found, middle = ours(sample, timestep, text, picture)
        expected = theirs(sample, timestep, text, picture, return_dict=False)
        other = ours(sample, timestep, text, picture.flip(1))
    assert_close("controlnet", "float32", found[3], expected[0][3])
    assert_close("controlnet", "float32", middle, expected[1])
    assert not torch.allclose(other[1], middle)


def is_pooled(control: ControlCheckpoint) -> bool:
    config = control.control_config
    return isinstance(config, ControlNetConfig) and config.global_pool_conditions


@pytest.mark.parametrize("made", ["tiny-sd15"], indirect=True)
def test_a_build_takes_a_file(tmp_path: Path, made: tuple[Checkpoint, State]) -> None:
    base, state = made
    save_file(original(base, state), tmp_path / "canny.safetensors")
    (control,) = open_controls({"canny": tmp_path / "canny.safetensors"}, base).values()
    assert control.name == "canny"
    wrong = replace(base, unet_config=replace(base.unet_config, cross_attention_dim=2048))
    with pytest.raises(CheckpointError, match=r"control canny: .* is for .* width .*2048"):
        open_controls({"canny": tmp_path / "canny.safetensors"}, wrong)
    assert not is_pooled(control)
    save_file(original(base, state), tmp_path / "control_v11e_Shuffle.safetensors")
    pooled = read_control_file(tmp_path / "control_v11e_Shuffle.safetensors", base)
    assert is_pooled(pooled)
    (tmp_path / "canny.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"'.txt' is not among"):
        open_controls({"canny": tmp_path / "canny.txt"}, base)
