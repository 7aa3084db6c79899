"""Checkpoint folders: variants, pickled weights, identity, and what a family asks for."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_folders import TEXT, UNET, VAE, edit_json, edit_weights
from support.tiny_architectures import TINY_SD15
from support.tiny_checkpoints import make_tiny

from sdengine.checkpoints import convert, load_checkpoint
from sdengine.errors import CheckpointError, ConfigError, OutputError
from sdengine.samplers import resolve_names


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_pickled_weights_are_read_where_there_are_no_others(checkpoint: Path, copy: Path) -> None:
    for name, pickled in (
        (UNET, "unet/diffusion_pytorch_model.bin"),
        (VAE, "vae/diffusion_pytorch_model.bin"),
        (TEXT, "text_encoder/pytorch_model.bin"),
    ):
        torch.save(load_file(copy / name), copy / pickled)
        (copy / name).unlink()
    assert load_checkpoint(copy).sha256 == load_checkpoint(checkpoint).sha256
    torch.save({"x": torch.zeros(2)}, copy / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin.*missing"):
        load_checkpoint(copy).unet()


def test_a_variant_is_taken_when_it_is_named(copy: Path) -> None:
    for name in (UNET, VAE, TEXT):
        variant = (copy / name).with_suffix(".ema.safetensors")
        state = load_file(copy / name)
        save_file({n: t + 1 for n, t in state.items()}, variant)
    plain, named = load_checkpoint(copy), load_checkpoint(copy, variant="ema")
    for part in plain.parts:
        assert plain.part_sha256(part) != named.part_sha256(part)
        before, after = plain.load(part).state_dict(), named.load(part).state_dict()
        assert all(torch.equal(after[n], (before[n].half() + 1).float()) for n in before)
    with pytest.raises(CheckpointError, match=r"no weights of variant 'fp8'"):
        load_checkpoint(copy, variant="fp8")
    # Networks that have none of it come from the plain weights, and that is told.
    (copy / UNET).with_suffix(".ema.safetensors").unlink()
    mixed = load_checkpoint(copy, variant="ema")
    assert [(guess.what, guess.value) for guess in mixed.guesses] == [("weights of unet", "plain")]
    sources = {"unet": plain, "vae": named, "text_encoder": named}
    assert all(mixed.part_sha256(p) == source.part_sha256(p) for p, source in sources.items())
    for wrong in ("../x", "", "a.b", 3):
        with pytest.raises(ConfigError, match="variant"):
            load_checkpoint(copy, variant=wrong)  # type: ignore[arg-type]


def test_half_precision_alone_is_enough(checkpoint: Path, copy: Path) -> None:
    for name in (UNET, VAE, TEXT):
        (copy / name).rename((copy / name).with_suffix(".fp16.safetensors"))
    assert load_checkpoint(copy).sha256 == load_checkpoint(checkpoint).sha256


def test_content_is_told_by_values_and_not_by_files(checkpoint: Path, copy: Path) -> None:
    before = load_checkpoint(checkpoint)
    edit_weights(copy / UNET, lambda s: s.update(dict(reversed(s.items()))))
    assert load_checkpoint(copy).sha256 == before.sha256
    edit_weights(copy / UNET, lambda s: s["conv_in.bias"].add_(1))
    changed = load_checkpoint(copy)
    assert changed.part_sha256("vae") == before.part_sha256("vae")
    assert changed.part_sha256("unet") != before.part_sha256("unet")
    assert changed.sha256 != before.sha256
    edit_json(copy / "vae/config.json", scaling_factor=0.5)
    assert load_checkpoint(copy).part_sha256("vae") != before.part_sha256("vae")


def test_family_and_prediction_type_can_be_demanded(copy: Path) -> None:
    assert load_checkpoint(copy, family="sd1").family == "sd1"
    assert load_checkpoint(copy, family=TINY_SD15).family == "sd1"
    for family in ("sdxl", "sd21"):
        with pytest.raises(CheckpointError, match=f"'{family}' was asked for.*'sd1'"):
            load_checkpoint(copy, family=family)
    with pytest.raises(ConfigError, match="sd9"):
        load_checkpoint(copy, family="sd9")
    opened = load_checkpoint(copy, prediction_type="v_prediction")
    assert opened.scheduler_config["prediction_type"] == "v_prediction"
    assert load_checkpoint(copy).sha256 != opened.sha256
    with pytest.raises(ConfigError, match="flow"):
        load_checkpoint(copy, prediction_type="flow")


def test_distilled_checkpoints_have_defaults_of_their_own(copy: Path, tmp_path: Path) -> None:
    assert load_checkpoint(copy).defaults == {}
    lcm = load_checkpoint(make_tiny("tiny-lcm", tmp_path / "lcm")).defaults
    assert (lcm["sampler"], lcm["guidance_scale"]) == ("lcm", 8.0)
    scheduler = copy / "scheduler/scheduler_config.json"
    edit_json(scheduler, _class_name="LCMScheduler")
    assert load_checkpoint(copy).defaults["guidance_scale"] == 1.0
    edit_json(scheduler, _class_name="EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    turbo = load_checkpoint(copy).defaults
    assert (turbo["sampler"], turbo["steps"], turbo["guidance_scale"]) == ("euler_a", 1, 1.0)
    (copy / "sdengine.json").write_text('{"defaults": {"steps": 7}}')
    assert load_checkpoint(copy).defaults == {"steps": 7}
    for defaults in (lcm, turbo):  # what is proposed must be something that requests accept
        resolve_names(defaults["sampler"], defaults["schedule"])


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    folder = make_tiny("tiny-sdxl", tmp_path / "xl")
    opened = load_checkpoint(folder)
    merges = folder / "tokenizer_2/merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert set(opened.tokenizer_files()) == {"vocab.json", "merges.txt"}
    merges.write_bytes(merges.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="tokenizer and tokenizer_2 differ"):
        opened.tokenizer_files()


def test_time_ids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = make_tiny("tiny-sdxl-refiner", tmp_path / "refiner")
    edit_json(folder / "model_index.json", requires_aesthetics_score=False)
    with pytest.raises(CheckpointError, match="requires_aesthetics_score"):
        load_checkpoint(folder)
    edit_json(folder / "model_index.json", requires_aesthetics_score="yes")
    with pytest.raises(CheckpointError, match="requires_aesthetics_score is 'yes'"):
        load_checkpoint(folder)


@pytest.mark.parametrize("arch", ["tiny-sdxl", "tiny-sdxl-refiner", "tiny-lcm"])
def test_synthetic_families_load(arch: str, tmp_path: Path) -> None:
    opened = load_checkpoint(make_tiny(arch, tmp_path / arch))
    for part in opened.parts:
        values = torch.cat([t.flatten() for t in opened.load(part).state_dict().values()])
        assert torch.isfinite(values).all()
        assert values.std() > 0.01


def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    # A limit on the size of files stands for the end of the disk: both fail in the middle.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            convert(checkpoint, tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []
    convert(checkpoint, tmp_path / "new")
    assert load_checkpoint(tmp_path / "new").sha256 == load_checkpoint(checkpoint).sha256
