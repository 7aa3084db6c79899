"""Single files with the original names: diffusers' own converters and ours see the same weights."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import save_file
from torch import nn

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.convert import convert
from sdengine.checkpoints.original_names import Place, text_place, unet_place, vae_place
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.cli.main import main
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.configs import FAMILIES, ModelFamily
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

PREFIXES = {
    "tiny-sd15": ("cond_stage_model.transformer.",),
    "tiny-sd21": ("cond_stage_model.model.",),
    "tiny-sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "tiny-sdxl-refiner": ("conditioner.embedders.0.model.",),
    "tiny-lcm": ("cond_stage_model.transformer.",),
}


def modules_of(family: ModelFamily) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel(family.unet),
        "vae": AutoencoderKL(family.vae),
    }
    for part, config in zip(family.text_parts, family.text_encoders, strict=True):
        modules[part] = CLIPTextEncoder(config)
    for seed, module in enumerate(modules.values()):
        seed_weights(module, seed)
    return modules


def original_state(family: ModelFamily, modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Write what a published file of the family would hold."""
    state: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}

    def put(place: Place, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().clone()
        if place.third is not None:
            thirds.setdefault(place.name, {})[place.third] = tensor
            return
        is_vae_product = ".mid.attn_1." in place.name and tensor.ndim == 2
        if is_vae_product:  # convolutions of one pixel in the file
            tensor = tensor[:, :, None, None]
        state[place.name] = (tensor.T if place.transposed else tensor).contiguous()

    for name, tensor in modules["unet"].state_dict().items():
        put(unet_place(name, family.unet), tensor)
    for name, tensor in modules["vae"].state_dict().items():
        put(vae_place(name, family.vae), tensor)
    for part, config, prefix in zip(
        family.text_parts, family.text_encoders, PREFIXES[family.name], strict=True
    ):
        for name, tensor in modules[part].state_dict().items():
            put(text_place(name, config, prefix), tensor)
    for name, parts in thirds.items():
        state[name] = torch.cat([parts[i] for i in range(3)])
    state["model_ema.decay"] = torch.zeros(())
    return state


@pytest.fixture(scope="module", params=PREFIXES)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelFamily, dict[str, nn.Module], Path]:
    family = FAMILIES[request.param]
    modules = modules_of(family)
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    save_file(original_state(family, modules), path)
    return family, modules, path


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    ours, wanted = found.state_dict(), expected.state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_every_network_comes_back(written: Any) -> None:
    family, modules, path = written
    opened = load_checkpoint(path, family=family.name)
    assert_same(opened.unet(), modules["unet"])
    assert_same(opened.vae(), modules["vae"])
    for part in family.text_parts:
        assert_same(opened.text_encoder(part=part), modules[part])
    assert opened.scheduler_config["prediction_type"] == family.prediction_type


def test_diffusers_converts_the_unet_to_the_same_names(written: Any) -> None:
    family, modules, path = written
    if family.unet.time_cond_proj_dim:
        pytest.skip("diffusers' converter knows no guidance embedding")
    from safetensors.torch import load_file

    config = family.unet.to_dict()
    config["class_embed_type"] = None
    found = theirs.convert_ldm_unet_checkpoint(load_file(path), config)
    wanted = modules["unet"].state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name


def test_diffusers_converts_the_autoencoder_to_the_same_names(written: Any) -> None:
    from safetensors.torch import load_file

    family, modules, path = written
    found = theirs.convert_ldm_vae_checkpoint(load_file(path), family.vae.to_dict())
    wanted = modules["vae"].state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].reshape(tensor.shape), tensor), name


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_pickled_files_hold_the_same(tmp_path: Path, suffix: str) -> None:
    family = FAMILIES["tiny-sd21"]
    modules = modules_of(family)
    state = {k: v.to(torch.bfloat16) for k, v in original_state(family, modules).items()}
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": state, "callbacks": {"x": _Trainer()}, "epoch": 3}, path)
    opened = load_checkpoint(path, family=family.name)
    assert_same(opened.unet(torch.bfloat16), modules["unet"].to(torch.bfloat16))
    assert_same(opened.text_encoder(torch.bfloat16), modules["text_encoder"].to(torch.bfloat16))


class _Trainer:
    def __init__(self) -> None:
        self.state = [1, 2]


class _Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch attacked",)


def test_a_pickle_cannot_run_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "x": _Attack()}, path)
    with pytest.raises(CheckpointError, match="no Stable Diffusion checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02]q\x00" * 50,
        b"cos\nsystem\n(S'touch attacked'\ntR.",
        b'c__builtin__\neval\n(S\'open("attacked","w")\'\ntR.',
        pickle.dumps([1, 2, 3]),
        b"\x80\x02(" * 100_000 + b".",
    ],
)
def test_hostile_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("model.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    with pytest.raises(CheckpointError):
        load_checkpoint("model.ckpt")
    assert not (tmp_path / "attacked").exists()


def test_a_tensor_larger_than_its_storage(tmp_path: Path) -> None:
    small = tmp_path / "small.ckpt"
    torch.save({"a": torch.zeros(4)}, small)
    with zipfile.ZipFile(small) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in contents if n.endswith("data.pkl"))
    assert b"K\x04\x85" in contents[name]  # the shape, a tuple of one 4
    contents[name] = contents[name].replace(b"K\x04\x85", b"K\xff\x85", 1)
    path = tmp_path / "large.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in contents.items():
            archive.writestr(member, data)
    with pytest.raises(CheckpointError, match="larger than its storage"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    family = FAMILIES["tiny-sd15"]
    state = original_state(family, modules_of(family))
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    family = FAMILIES["tiny-sd15"]
    state = original_state(family, modules_of(family))
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"input_blocks\.0\.0\.weight is \[16, 4, 3, 3\]"):
        load_checkpoint(path)  # told from its names, it would be of full size
    with pytest.raises(ConfigError, match="family"):
        load_checkpoint(path, family="sd9")
    with pytest.raises(ConfigError, match="prediction_type"):
        load_checkpoint(path, family="tiny-sd15", prediction_type="flow")
    opened = load_checkpoint(path, family="tiny-sd15", prediction_type="v_prediction")
    assert opened.scheduler_config["prediction_type"] == "v_prediction"
    del state["model.diffusion_model.out.2.bias"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"missing, first 'model\.diffusion_model\.out\.2"):
        load_checkpoint(path, family="tiny-sd15").unet()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nowhere.safetensors")


def test_another_autoencoder(tmp_path: Path) -> None:
    family = FAMILIES["tiny-sd15"]
    modules = modules_of(family)
    save_file(original_state(family, modules), tmp_path / "model.safetensors")
    other = AutoencoderKL(family.vae)
    seed_weights(other, 99)
    bare = {
        vae_place(name, family.vae, "").name: tensor.clone()
        for name, tensor in other.state_dict().items()
    }
    save_file(bare, tmp_path / "vae.safetensors")
    opened = load_checkpoint(
        tmp_path / "model.safetensors", family="tiny-sd15", vae=tmp_path / "vae.safetensors"
    )
    assert_same(opened.vae(), other)
    assert_same(opened.unet(), modules["unet"])


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_full_size_names_are_those_that_diffusers_reads(name: str) -> None:
    family = FAMILIES[name]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(family.unet), AutoencoderKL(family.vae)
    state = {unet_place(n, family.unet).name: t for n, t in unet.state_dict().items()}
    config = {**family.unet.to_dict(), "class_embed_type": None}
    assert (
        theirs.convert_ldm_unet_checkpoint(dict(state), config).keys() == unet.state_dict().keys()
    )
    state = {vae_place(n, family.vae).name: t for n, t in vae.state_dict().items()}
    found = theirs.convert_ldm_vae_checkpoint(state, family.vae.to_dict())
    assert found.keys() == vae.state_dict().keys()


def test_converted_folder_holds_the_same(tmp_path: Path) -> None:
    family = FAMILIES["tiny-sdxl"]
    modules = modules_of(family)
    save_file(original_state(family, modules), tmp_path / "model.safetensors")
    seen: list[tuple[str, int, int]] = []
    folder = convert(
        tmp_path / "model.safetensors",
        tmp_path / "folder",
        dtype="fp32",
        family="tiny-sdxl",
        progress=lambda *step: seen.append(step),
    )
    opened = load_checkpoint(folder)
    assert opened.family == "sdxl"
    assert_same(opened.unet(), modules["unet"])
    assert_same(opened.text_encoder(part="text_encoder_2"), modules["text_encoder_2"])
    assert [done for _, done, _ in seen] == [0, 1, 2, 3]
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    assert_same(opened.vae(), modules["vae"])
    assert pipeline.tokenizer_2.pad_token == "!"


def test_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES["tiny-sd15"]
    save_file(original_state(family, modules_of(family)), tmp_path / "model.safetensors")
    source, folder = str(tmp_path / "model.safetensors"), str(tmp_path / "folder")
    assert main(["convert", source, "-o", folder, "--family", "tiny-sd15"]) == 0
    assert capsys.readouterr().out.strip() == folder
    assert main(["convert", source, "-o", folder, "--family", "tiny-sd15"]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["convert", source, "-o", folder, "--dtype", "fp8"]) == 2
    assert main(["convert", str(tmp_path / "none.ckpt"), "-o", str(tmp_path / "b")]) == 1
    assert not (tmp_path / "b").exists()
