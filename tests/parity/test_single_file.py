"""Single files with the original names: diffusers' own converters and ours see the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file, save_file
from support.original_names import vae_place
from support.readable_architectures import READABLE_SD15
from support.single_files import modules_of, original_state
from support.tiny_architectures import TINY
from support.tiny_checkpoints import make_tiny
from torch import nn

from sdengine.checkpoints import convert, load_checkpoint, save_checkpoint
from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.schedules import noise_schedule_config
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.cli.main import main
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.configs import ModelArchitecture
from sdengine.models.vae import AutoencoderKL

NAMES = ("tiny-sd15", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner", "tiny-lcm")
PIPELINES = {
    "tiny-sd15": StableDiffusionPipeline,
    "tiny-sd21": StableDiffusionPipeline,
    "tiny-sdxl": StableDiffusionXLPipeline,
    "tiny-sdxl-refiner": StableDiffusionXLImg2ImgPipeline,
}


@pytest.fixture(scope="module", params=NAMES)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelArchitecture, dict[str, nn.Module], Path]:
    family = TINY[request.param]
    modules = modules_of(family)
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(original_state(family, modules), path)
    return family, modules, path


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """The networks of a tiny Stable Diffusion 1, what its file holds, and the file."""
    family = TINY["tiny-sd15"]
    modules = modules_of(family)
    state = original_state(family, modules)
    path = tmp_path_factory.mktemp("sd15") / "model.safetensors"
    save_file(state, path)
    return modules, state, path


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    assert_same_state(found.state_dict(), expected.state_dict())


def assert_same_state(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name


def test_every_network_comes_back(written: Any) -> None:
    family, modules, path = written
    opened = load_checkpoint(path, family=family)
    assert opened.parts == (*family.text_parts, "unet", "vae")
    for part, module in modules.items():
        assert_same(opened.load(part), module)
    assert opened.scheduler_config["prediction_type"] == family.prediction_type


def test_diffusers_converts_the_unet_to_the_same_names(written: Any) -> None:
    family, modules, path = written
    config = {**family.unet.to_dict(), "class_embed_type": None}
    found = theirs.convert_ldm_unet_checkpoint(load_file(path), config)
    wanted = modules["unet"].state_dict()
    # Their converter knows no guidance embedding.
    assert_same_state(found, {n: t for n, t in wanted.items() if ".cond_proj." not in n})


def test_diffusers_converts_the_autoencoder_to_the_same_names(written: Any) -> None:
    family, modules, path = written
    found = theirs.convert_ldm_vae_checkpoint(load_file(path), family.vae.to_dict())
    assert_same_state(found, modules["vae"].state_dict())


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.filterwarnings("ignore")  # what their loader deprecates is not ours to mend
def test_diffusers_loads_the_same_networks_from_the_file(name: str, tmp_path: Path) -> None:
    family = TINY[name]
    path = tmp_path / "model.safetensors"
    save_file(original_state(family, modules_of(family)), path)
    config = make_tiny(name, tmp_path / "config", seed=9)
    pipeline = PIPELINES[name].from_single_file(path, config=str(config), local_files_only=True)
    opened = load_checkpoint(path, family=family)
    for part in opened.parts:
        state = getattr(pipeline, part).state_dict()
        if (name, part) == ("tiny-sdxl", "text_encoder_2"):
            # Their loader tells the two encoders apart by widths, which are one here.
            prefix = "conditioner.embedders.1.model."
            state = theirs.convert_open_clip_checkpoint(None, load_file(path), prefix)
        if part in family.text_parts:  # recent versions leave the prefix out
            state = {n if n.startswith("text_") else f"text_model.{n}": t for n, t in state.items()}
        assert_same_state(opened.load(part).state_dict(), state)


def test_a_file_of_half_the_text_encoders_layers_more_is_read(tmp_path: Path) -> None:
    # Stable Diffusion 2 files hold the last layer, which conditions nothing.
    family = TINY["tiny-sd21"]
    modules = modules_of(family)
    state = original_state(family, modules)
    layer = "cond_stage_model.model.transformer.resblocks.2."
    for name in [n for n in state if n.startswith(layer)]:
        state[name.replace(".2.", ".3.", 1)] = torch.full_like(state[name], 7.0)
    state["cond_stage_model.model.text_projection"] = torch.zeros(32, 32)
    save_file(state, tmp_path / "model.safetensors")
    opened = load_checkpoint(tmp_path / "model.safetensors", family=family)
    assert_same(opened.text_encoder(), modules["text_encoder"])


def test_what_does_not_fit_is_named(sd15: Any, tmp_path: Path) -> None:
    _, state, path = sd15
    with pytest.raises(CheckpointError, match=r"block_out_channels: \(16, 32, 48, 48\)"):
        load_checkpoint(path)  # a published network of its shapes would have 8 heads
    with pytest.raises(ConfigError, match="family"):
        load_checkpoint(path, family="sd9")
    with pytest.raises(ConfigError, match="prediction_type"):
        load_checkpoint(path, family=TINY["tiny-sd15"], prediction_type="flow")
    with pytest.raises(CheckpointError, match=r"'tiny-sdxl' was asked for.*'sd1'"):
        load_checkpoint(path, family=TINY["tiny-sdxl"])
    with pytest.raises(ConfigError, match="variant"):
        load_checkpoint(path, family=TINY["tiny-sd15"], variant="fp16")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nowhere.safetensors")
    opened = load_checkpoint(path, family=TINY["tiny-sd15"], prediction_type="v_prediction")
    assert opened.scheduler_config["prediction_type"] == "v_prediction"
    with pytest.raises(ConfigError, match="text_encoder_2"):
        opened.load("text_encoder_2")

    def refused(part: str, match: str, **changes: torch.Tensor | None) -> None:
        changed = {**state, **{k.replace("__", "."): v for k, v in changes.items()}}
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({k: v for k, v in changed.items() if v is not None}, file)
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(file, family=TINY["tiny-sd15"]).load(part)

    unet = "model__diffusion_model__"
    refused("unet", r"1 of .* missing, first 'conv_out\.bias'", **{f"{unet}out__2__bias": None})
    refused("unet", r"conv_out\.bias.*\[3\].*\[4\]", **{f"{unet}out__2__bias": torch.zeros(3)})
    refused("unet", r"conv_out\.bias.*I64", **{f"{unet}out__2__bias": torch.zeros(4).long()})
    refused("unet", "unknown to the network.*adapter", **{f"{unet}adapter": torch.zeros(4)})
    vae = "first_stage_model__"
    refused("vae", "unknown to the network.*extra", **{f"{vae}extra": torch.zeros(4)})
    # The discriminator that an autoencoder was trained against is none of its tensors.
    changed = {**state, "first_stage_model.loss.logvar": torch.zeros(())}
    save_file(changed, tmp_path / "with-loss.safetensors")
    load_checkpoint(tmp_path / "with-loss.safetensors", family=TINY["tiny-sd15"]).vae()


@pytest.mark.parametrize(
    ("dropped", "match"),
    [
        ("model.diffusion_model.", "not a whole Stable Diffusion checkpoint.*'cond_stage_model"),
        ("cond_stage_model.", "no text encoder"),
        ("first_stage_model.", r"no first_stage_model\.\*.*separate autoencoder"),
    ],
)
def test_a_file_without_a_network_is_named(
    sd15: Any, tmp_path: Path, dropped: str, match: str
) -> None:
    _, state, _ = sd15
    path = tmp_path / "model.safetensors"
    save_file({n: t for n, t in state.items() if not n.startswith(dropped)}, path)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(path, family=TINY["tiny-sd15"]).vae()


def test_a_model_of_another_noise_process_is_refused(sd15: Any, tmp_path: Path) -> None:
    _, state, _ = sd15
    save_file({**state, "edm_mean": torch.zeros(4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="edm_mean"):
        load_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("form", ["bare", "prefixed", "diffusers", "folder", "subfolder", "pickle"])
def test_another_autoencoder(sd15: Any, tmp_path: Path, form: str) -> None:
    modules, _, path = sd15
    family = TINY["tiny-sd15"]
    other = AutoencoderKL(family.vae)
    seed_weights(other, 99)
    state = other.state_dict()
    prefix = "first_stage_model." if form == "prefixed" else ""
    original = {vae_place(n, family.vae, prefix).name: t.clone() for n, t in state.items()}
    place = tmp_path / "vae.safetensors"
    if form in ("folder", "subfolder"):
        whole = save_checkpoint(
            tmp_path / "other",
            unet=modules["unet"],
            vae=other,
            text_encoder=modules["text_encoder"],
            tokenizer_dir=demo_tokenizer_dir(),
            scheduler_config=noise_schedule_config("epsilon"),
            dtype=torch.float32,
        )
        place = whole / "vae" if form == "folder" else whole
    elif form == "pickle":
        place = tmp_path / "vae.pt"
        torch.save({"state_dict": {**original, "loss.logvar": torch.zeros(())}}, place)
    else:
        save_file(dict(state) if form == "diffusers" else original, place)
    before = load_checkpoint(path, family=TINY["tiny-sd15"])
    opened = load_checkpoint(path, family=TINY["tiny-sd15"], vae=place)
    assert_same(opened.vae(), other)
    assert_same(opened.unet(), modules["unet"])
    assert opened.vae_config == before.vae_config
    assert opened.sha256 != before.sha256
    assert opened.part_sha256("unet") == before.part_sha256("unet")


def test_another_autoencoder_that_is_none_is_refused(sd15: Any, tmp_path: Path) -> None:
    _, _, path = sd15
    save_file({"a": torch.zeros(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match="not an autoencoder"):
        load_checkpoint(path, family=TINY["tiny-sd15"], vae=tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"vae .*nowhere.* does not exist"):
        load_checkpoint(path, family=TINY["tiny-sd15"], vae=tmp_path / "nowhere.safetensors")
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(path, family=TINY["tiny-sd15"], vae=tmp_path)


def test_a_converted_folder_holds_the_same(written: Any, tmp_path: Path) -> None:
    family, modules, path = written
    seen: list[tuple[str, int, int]] = []
    folder = convert(
        path,
        tmp_path / "folder",
        dtype="fp32",
        family=family,
        progress=lambda *step: seen.append(step),
    )
    before, opened = load_checkpoint(path, family=family), load_checkpoint(folder)
    assert opened.family == before.family
    assert opened.pad_tokens == before.pad_tokens
    assert opened.scheduler_config == before.scheduler_config
    assert opened.defaults == before.defaults
    assert opened.zero_empty_negative == before.zero_empty_negative
    assert opened.requires_aesthetic_score == before.requires_aesthetic_score
    for part, module in modules.items():
        assert_same(opened.load(part), module)
        assert opened.part_sha256(part) == before.part_sha256(part)
        steps = [(done, total) for name, done, total in seen if name == part]
        count = len(module.state_dict())
        assert steps == [(done, count) for done in range(count + 1)]
    assert opened.sha256 == before.sha256


@pytest.mark.parametrize("name", PIPELINES)
def test_diffusers_loads_a_converted_folder(name: str, tmp_path: Path) -> None:
    family = TINY[name]
    path = tmp_path / "model.safetensors"
    save_file(original_state(family, modules_of(family)), path)
    folder = convert(path, tmp_path / "folder", dtype="fp16", family=family)
    pipeline = PIPELINES[name].from_pretrained(folder, dtype=torch.float16)
    assert type(pipeline).__name__ == PIPELINES[name].__name__
    opened = load_checkpoint(folder)
    assert_same_state(opened.unet(torch.float16).state_dict(), pipeline.unet.state_dict())
    for part in family.text_parts:
        tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
        assert tokenizer.pad_token == opened.pad_tokens[part]
        ids = tokenizer("a Photo, of it's", padding="max_length").input_ids
        assert len(ids) == 77
        assert ids[:8] == [49406, 320, 1125, 267, 539, 585, 568, 49407]


def test_inspect_tells_what_was_assumed_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    family = READABLE_SD15
    save_file(original_state(family, modules_of(family)), path)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "assumed     prediction type epsilon" in shown
    assert "(--prediction-type)" in shown
    assert "left out    1, moving averages of training\n              model_ema.decay" in shown
    assert main(["inspect", str(path), "--prediction-type", "v_prediction", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [guess["what"] for guess in told["guesses"]] == ["family", "size"]
    assert told["ignored"] == {"model_ema.decay": "moving averages of training"}
    assert told["scheduler"]["prediction_type"] == "v_prediction"
    # Of a folder the files say all that is asked.
    assert main(["inspect", str(make_tiny("tiny", tmp_path / "folder"))]) == 0
    assert "assumed" not in capsys.readouterr().out


def test_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = str(make_tiny("tiny", tmp_path / "source")), str(tmp_path / "folder")
    weights = tmp_path / "source" / "unet" / "diffusion_pytorch_model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert main(["convert", source, "-o", folder, "--family", "sd1"]) == 0
    assert capsys.readouterr().out.strip() == folder
    assert main(["convert", source, "-o", folder, "--family", "sd1"]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["convert", source, "-o", folder, "--dtype", "fp8"]) == 2
    assert main(["convert", folder, "-o", f"{folder}2", "--variant", "fp16"]) == 1
    assert "variant" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.ckpt"), "-o", str(tmp_path / "b")]) == 2
    assert {entry.name for entry in tmp_path.iterdir()} == {"source", "folder"}
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before
