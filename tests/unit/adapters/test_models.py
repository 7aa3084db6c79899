"""Other checkpoints give a bundle the bits that a bundle built of them holds, or say why not.

The oracle is the build's own reader, in torch.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoint_folders import UNET, edit_json, edit_weights
from support.model_sources import Array, held, own_of, same, stored
from support.single_files import original_state
from support.tiny_architectures import TINY
from support.tiny_checkpoints import make_tiny

from sdengine.adapters.sources import model as models
from sdengine.adapters.sources.model import Model
from sdengine.adapters.sources.own import Own
from sdengine.checkpoints import load_checkpoint
from sdengine.errors import CheckpointError, ConfigError
from sdengine.inputs.models import PARTS, find_model, model_terms

FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, int], Path]:
    """Checkpoints by family and seed; seed 0 is the bundle's."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {(name, 0): make_tiny(name, root / f"{name}-0") for name in FAMILIES}
    others = {(name, 1): make_tiny(name, root / f"{name}-1", seed=1) for name in FAMILIES}
    return made | others | {("tiny", 2): make_tiny("tiny", root / "tiny-2", seed=2)}


@pytest.fixture(scope="module")
def own(folders: Any) -> Own:
    return own_of(folders["tiny", 0])


@functools.cache
def modules(folder: Path) -> dict[str, Any]:
    opened = load_checkpoint(folder)
    return {part: opened.load(part) for part in opened.parts}


def single_file(folder: Path, name: str, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a checkpoint under the original names."""
    state = original_state(TINY[name], modules(folder))
    tensors = {key: value.to(dtype) for key, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    return path


def read_model(given: Any, own: Own) -> Model:
    """Read what a request may give."""
    return models.read_model(model_terms("model", given), own)


def taken(model: Model, *parts: str) -> dict[str, dict[str, Array]]:
    """Return all parameters of a model's parts, as networks of a bundle would get them."""
    return {
        part: {name: model.parameter(part, name, array) for name, array in parameters.items()}
        for part, parameters in model.own.parts.items()
        if part in (parts or model.own.parts)
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_in_a_folder_and_a_single_file(name: str, folders: Any, tmp_path: Path) -> None:
    own = own_of(folders[name, 0])
    expected = held(folders[name, 1])
    ending = "ckpt" if name == "tiny" else "safetensors"
    for path in (
        folders[name, 1],
        single_file(folders[name, 1], name, tmp_path / f"other.{ending}"),
    ):
        model = read_model(path, own)
        found = taken(model)
        assert found.keys() == expected.keys()
        for part in expected:
            assert same(found[part], expected[part]), (path, part)
        assert model.notes == () and model.name == path.stem
        assert all(bool(model.identity(part)) == (part in expected) for part in PARTS)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp16", torch.float32), ("bf16", torch.float64), ("fp32", torch.bfloat16)],
)
def test_numbers_are_rounded_once_to_what_the_bundle_stores(
    precision: str, dtype: torch.dtype, folders: Any, tmp_path: Path
) -> None:
    own = own_of(folders["tiny", 0], precision)
    path = make_tiny("tiny", tmp_path / "fp32", seed=1, dtype=torch.float32)
    file = single_file(path, "tiny", tmp_path / "other.safetensors", dtype)
    expected = held(file, precision, family=TINY["tiny-sd15"])
    found = taken(read_model(file, own))
    assert all(same(found[part], expected[part]) for part in expected)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_eight_bits(kind: torch.dtype, own: Own, folders: Any, tmp_path: Path) -> None:
    state = original_state(TINY["tiny"], modules(folders["tiny", 1]))
    scaled = "model.diffusion_model.out.2"
    eight = {k: v.to(kind) if v.ndim > 1 else v for k, v in state.items()}
    eight |= {f"{scaled}.scale_weight": torch.tensor(0.5), "scaled_fp8": torch.zeros(2).to(kind)}
    save_file(eight, tmp_path / "eight.safetensors")
    found = taken(read_model(tmp_path / "eight.safetensors", own))
    expected = held(tmp_path / "eight.safetensors", family=TINY["tiny-sd15"])
    assert all(same(found[part], expected[part]) for part in expected)


@pytest.mark.parametrize("form", ["original", "without prefix", "diffusers", "unet.", "folder"])
def test_a_unet_alone_leaves_the_rest(form: str, own: Own, folders: Any, tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    state = original_state(TINY["tiny"], modules(folders["tiny", 1]))
    prefix = "model.diffusion_model."
    theirs = {key: value for key, value in state.items() if key.startswith(prefix)}
    ours = modules(folders["tiny", 1])["unet"].state_dict()
    if form == "folder":
        path = folders["tiny", 1] / "unet"
    elif form in ("diffusers", "unet."):
        save_file({form.replace("diffusers", "") + k: v for k, v in ours.items()}, path)
    else:
        cut = "" if form == "original" else prefix
        save_file({key.removeprefix(cut): value for key, value in theirs.items()}, path)
    model = read_model(path, own)
    found = taken(model)
    assert same(found["unet"], held(folders["tiny", 1])["unet"])
    for part in ("vae", "text_encoder"):
        assert same(found[part], own.parts[part]) and model.identity(part) == ""
        assert model.weights(part, own.parts[part]) is own.parts[part]
    assert model.identity("unet") and model.notes == (
        f"{path.stem}: it holds no text_encoder, vae; the bundle's stays",
    )


def shares_of(folders: Any, *shares: float) -> dict[str | Path, float]:
    return {folders["tiny", seed]: share for seed, share in enumerate(shares, 1)}


def exact(terms: Sequence[tuple[Mapping[str, Array], float]], name: str) -> torch.Tensor:
    """Return a mixture in fp64."""
    parts = [share * torch.from_numpy(np.array(p[name])).double() for p, share in terms]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize("shares", [(0.7, 0.3), (1.0, 0.5, -0.5), (-2.0, 3.0)])
def test_weighted_sums_and_added_differences(
    shares: tuple[float, ...], own: Own, folders: Any
) -> None:
    seeds = [1, 2, 0][: len(shares)]
    given = {folders["tiny", seed]: share for seed, share in zip(seeds, shares, strict=True)}
    if len(shares) == 3:  # the bundle itself as the one that is taken away
        given = {("bundle" if path == folders["tiny", 0] else path): s for path, s in given.items()}
    model = read_model(given, own)
    found = taken(model, "unet", "vae")
    parts = [held(folders["tiny", seed]) for seed in seeds]
    for part in found:
        terms = [(p[part], share) for p, share in zip(parts, shares, strict=True)]
        for name, array in found[part].items():
            wanted = stored(exact(terms, name).float())
            # fp32 sums may round to the other of two neighbours.
            scale = np.abs(wanted.astype(np.float64)).max() + 1e-3
            least = 2**-10 if array.ndim > 1 else 1e-6
            assert np.abs(array.astype(np.float64) - wanted).max() <= least * scale, (part, name)
    again = read_model(dict(reversed(given.items())), own)
    assert again.identity("unet") == model.identity("unet")
    assert same(taken(again, "vae")["vae"], found["vae"])


def test_mixtures_that_come_to_one_checkpoint_are_it(own: Own, folders: Any) -> None:
    one, other = folders["tiny", 1], folders["tiny", 2]
    alone = read_model(one, own)
    assert read_model({one: 1, other: 0}, own).identity("unet") == alone.identity("unet")
    assert read_model({"bundle": 1}, own).identity("unet") == ""
    assert read_model({one: 0.5, other: 0.5}, own).identity("unet") not in (
        "",
        alone.identity("unet"),
        read_model({one: 0.4, other: 0.6}, own).identity("unet"),
    )
    assert read_model({one: 1, "bundle": 0.5, other: -0.5}, own).name == (
        "1 tiny-1 + 0.5 bundle - 0.5 tiny-2"
    )


@pytest.mark.parametrize(
    "given", [{}, {"a": 0.5}, {"a": float("nan")}, {"a": True}, {"a": "1"}, {"a": 200, "b": -199}]
)
def test_shares_that_make_no_model(given: Any, own: Own) -> None:
    with pytest.raises(ConfigError, match="model"):
        read_model(given, own)


@pytest.mark.parametrize("channels", [9, 5])
def test_a_model_of_text_for_a_bundle_that_reads_a_picture(
    channels: int, own: Own, folders: Any, tmp_path: Path
) -> None:
    """Its first convolution keeps the bundle's own channels for mask, picture or depth."""
    wide = np.random.default_rng(3).standard_normal((16, channels, 3, 3)).astype(np.float16)
    unet = {**own.parts["unet"], "conv_in.weight": wide}
    padded = Own(own.architecture, {**own.parts, "unet": unet})
    first = taken(read_model(folders["tiny", 1], padded), "unet")["unet"]["conv_in.weight"]
    theirs = held(folders["tiny", 1])["unet"]["conv_in.weight"]
    assert np.array_equal(first[:, :4], theirs) and np.array_equal(first[:, 4:], wide[:, 4:])
    # Adding a difference of two such models leaves these channels alone.
    given = {"bundle": 1.0, folders["tiny", 1]: 1.0, folders["tiny", 2]: -1.0}
    sums = taken(read_model(given, padded), "unet")["unet"]["conv_in.weight"]
    assert np.array_equal(sums[:, 4:], wide[:, 4:])
    others = held(folders["tiny", 2])["unet"]["conv_in.weight"].astype(np.float32)
    exact = wide[:, :4].astype(np.float32) + theirs.astype(np.float32) - others
    assert np.abs(sums[:, :4].astype(np.float32) - exact).max() < 2e-3 * np.abs(exact).max()
    # The other way round there is no place for what it reads.
    folder = shutil.copytree(folders["tiny", 1], tmp_path / "wide")
    wider = torch.zeros(16, channels, 3, 3)
    edit_weights(folder / UNET, lambda state: state.update({"conv_in.weight": wider}))
    with pytest.raises(CheckpointError, match=rf"conv_in.weight'.*\[16, {channels}, 3, 3\].*4"):
        read_model(folder, own)


def nan(state: dict[str, Any]) -> None:
    state["mid_block.resnets.0.conv1.weight"][1, 2, 0, 0] = float("nan")


def huge(state: dict[str, Any]) -> None:
    name = "mid_block.resnets.0.conv1.weight"
    state[name] = state[name].float()
    state[name][0] = -70000.0


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s.pop("conv_out.bias"), r"1 of \d+ tensors are missing, first 'conv_out.bias'"),
        (lambda s: s.update(more=torch.zeros(3)), "unknown to the network.*'more'"),
        (lambda s: s.update({"conv_out.bias": torch.zeros(5)}), r"conv_out.bias.*\[5\].*\[4\]"),
        (
            lambda s: s.update({"conv_out.bias": torch.zeros(4, dtype=torch.int64)}),
            "conv_out.bias' is I64",
        ),
        (nan, r"unet: tensor 'mid_block.resnets.0.conv1.weight' \[48, 48, 3, 3\] holds NaN"),
        (huge, "conv1.weight.*reaches 70000, which fp16.*--precision fp32"),
    ],
)
def test_a_damaged_or_other_network_is_named(
    edit: Any, said: str, own: Own, folders: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["tiny", 1], tmp_path / "damaged")
    edit_weights(folder / UNET, edit)
    with pytest.raises(CheckpointError, match=rf"(?s)model .*damaged.*{said}"):
        read_model(folder, own)


@pytest.mark.parametrize("name", FAMILIES[1:])
def test_another_family_is_named(name: str, own: Own, folders: Any, tmp_path: Path) -> None:
    file = single_file(folders[name, 1], name, tmp_path / "other.safetensors")
    family = load_checkpoint(folders[name, 1]).family
    with pytest.raises(CheckpointError, match=rf"checkpoint of {family}; this bundle is"):
        read_model(file, own)
    with pytest.raises(CheckpointError, match=r"unet: |text_encoder: hidden_act is gelu"):
        read_model(folders[name, 1], own)


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "prediction_type: its U-Net predicts 'v_prediction'; this bundle's 'epsilon'",
        ),
        (
            "scheduler/scheduler_config.json",
            {"beta_end": 0.02},
            "noise levels are others .beta_end 0.02 for 0.012",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "no"}, "scheduler: .*beta_schedule"),
        ("unet/config.json", {"attention_head_dim": 2}, "unet: attention_head_dim is 2; this"),
        ("vae/config.json", {"scaling_factor": 0.5}, "vae: scaling_factor is 0.5; this bundle's"),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "text_encoder: hidden_act is gelu"),
    ],
)
def test_settings_that_no_shape_tells(
    place: str, change: dict[str, Any], said: str, own: Own, folders: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["tiny", 1], tmp_path / "other")
    edit_json(folder / place, **change)
    with pytest.raises(CheckpointError, match=said):
        read_model(folder, own)


@pytest.mark.parametrize(
    ("more", "metadata", "said"),
    [
        ({"v_pred": torch.zeros(1)}, {}, "predicts 'v_prediction'"),
        ({}, {"modelspec.prediction_type": "v"}, "predicts 'v_prediction'"),
        ({"edm_mean": torch.zeros(1)}, {}, "another noise process"),
    ],
)
def test_what_a_single_file_says_of_its_noise(
    more: Any, metadata: dict[str, str], said: str, own: Own, folders: Any, tmp_path: Path
) -> None:
    state = original_state(TINY["tiny"], modules(folders["tiny", 1]))
    save_file({**state, **more}, tmp_path / "m.safetensors", metadata)
    with pytest.raises(CheckpointError, match=said):
        read_model(tmp_path / "m.safetensors", own)


def test_files_that_are_no_checkpoint(own: Own, tmp_path: Path) -> None:
    lora = {"lora_unet_conv_in.lora_up.weight": torch.zeros(4, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "cut.safetensors").write_bytes((10 << 30).to_bytes(8, "little") + b"{}")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "lora.safetensors": "there is no U-Net.*A LoRA goes to `loras`",
        "text.txt": "'.txt' is not among",
        "cut.safetensors": "a header of 10737418240 bytes",
        "empty": "config.json",
        "absent": "does not exist",
    }.items():
        with pytest.raises(CheckpointError, match=f"model .*{name}.*{said}"):
            read_model(tmp_path / name, own)


def test_a_file_that_is_overwritten_is_refused(own: Own, folders: Any, tmp_path: Path) -> None:
    path = single_file(folders["tiny", 1], "tiny", tmp_path / "other.safetensors")
    model = read_model(path, own)
    model.require_unchanged()
    with path.open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1" * 8)
    with pytest.raises(CheckpointError, match="was overwritten"):
        model.require_unchanged()
    assert json.dumps(model.identity("unet"))


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(
        CheckpointError, match=r"model 'a\\x00b\.safetensors': embedded null byte\."
    ):
        find_model(Path("a\0b.safetensors"))
