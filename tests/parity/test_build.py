"""Bundles built from a tiny checkpoint: their networks against the torch modules."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.readable_architectures import READABLE_SD15
from support.single_files import modules_of, original_state
from support.tiny_architectures import TINY_SD15
from support.tiny_checkpoints import make_tiny
from tolerances import assert_close

import sdengine
from sdengine.backends import get_backend
from sdengine.backends.base import SessionOptions
from sdengine.building.report import BuildReport
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DeviceError,
    OutputError,
)
from sdengine.models.contracts import NETWORKS as EVERY_NETWORK
from sdengine.models.contracts import make_contract

TARGETS = ("openvino", "torch")
SIZES = {"batch": 2, "height": 64, "width": 128, "sequence": 77}

# Of a checkpoint with one text encoder; test_tiny_vae.py has the tiny autoencoder's.
_OTHERS = ("text_encoder_2", "tiny_decoder", "tiny_encoder")
NETWORKS = [name for name in EVERY_NETWORK if name not in _OTHERS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="module")
def reports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildReport]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        target: sdengine.build(
            checkpoint, folder / target, target=target, resolutions=(64, (128, 64)), batch=2
        )
        for target in TARGETS
    }


@pytest.fixture(scope="module")
def bundles(reports: dict[str, BuildReport]) -> dict[str, Bundle]:
    return {target: open_bundle(report.path, verify="hash") for target, report in reports.items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
def test_networks_compute_what_the_modules_do(
    checkpoint: Path, bundles: dict[str, Bundle], target: str, network: str
) -> None:
    opened = load_checkpoint(checkpoint)
    part = "vae" if network.startswith("vae") else network
    contract = make_contract(network, getattr(opened, part)())
    inputs = contract.example(2, 64, 128, seed=21)
    with torch.no_grad():
        expected = contract.module(*inputs)
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    named = {s.name: x.numpy() for s, x in zip(contract.inputs, inputs, strict=True)}

    bundle = bundles[target]
    shapes = resolve_shapes(network, bundle.network(network).inputs, SIZES)
    module = get_backend(target).open(bundle, SessionOptions("fp32", 1)).load(network, shapes)
    found = module.run(named)
    assert {spec.name: spec.shape for spec in module.inputs} == shapes
    for spec, value in zip(contract.outputs, expected, strict=True):
        assert_close("exported network", "float32", found[spec.name], value)
    by_name = {spec.name: spec for spec in module.outputs}
    assert all(by_name[name].shape == array.shape for name, array in found.items())
    assert {spec.dtype for spec in module.outputs} == {"float32"}
    module.close()
    module.close()
    with pytest.raises(DeviceError, match="closed"):
        module.run(named)


def test_the_torch_backend_computes_in_bf16(bundles: dict[str, Bundle]) -> None:
    bundle, backend = bundles["torch"], get_backend("torch")
    shapes = resolve_shapes("unet", bundle.network("unet").inputs, SIZES)
    generator = np.random.default_rng(0)
    inputs = {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    inputs["timestep"] = np.full(2, 999, dtype=np.float32)
    bf16, fp32 = (
        backend.open(bundle, SessionOptions(precision))
        .load("unet", shapes)
        .run(inputs)["noise_pred"]
        for precision in ("bf16", "fp32")
    )
    assert not np.array_equal(bf16, fp32)
    assert_close("unet", "bfloat16", bf16, fp32)


def test_the_torch_backend_names_what_is_wrong(bundles: dict[str, Bundle]) -> None:
    bundle, backend = bundles["torch"], get_backend("torch")
    shapes = resolve_shapes("vae_decoder", bundle.network("vae_decoder").inputs, SIZES)
    module = backend.open(bundle, SessionOptions("fp32")).load("vae_decoder", shapes)
    with pytest.raises(ConfigError, match="'latents' is not given"):
        module.run({})
    with pytest.raises(ConfigError, match=r"\[1, 4, 8, 8\].*\[2, 4, 8, 16\]"):
        module.run({"latents": np.zeros((1, 4, 8, 8), dtype=np.float32)})


def test_the_report_says_where_time_and_memory_went(reports: dict[str, BuildReport]) -> None:
    report = reports["openvino"]
    assert set(report.max_error) == set(NETWORKS)
    assert max(report.max_error.values()) < 1e-5
    stages = set(report.seconds)
    assert {f"{work} {name}" for work in ("export", "compile") for name in NETWORKS} <= stages
    assert report.peak_bytes > 50e6
    files = [path for path in report.path.rglob("*") if path.is_file()]
    assert report.bundle_bytes == sum(path.stat().st_size for path in files)
    assert reports["torch"].max_error == {}


def test_the_manifest_describes_the_checkpoint(
    checkpoint: Path, bundles: dict[str, Bundle]
) -> None:
    manifest = bundles["openvino"].manifest
    assert manifest.resolutions == [(64, 64), (128, 64)]
    assert (manifest.defaults.width, manifest.defaults.height) == (64, 64)
    assert manifest.max_batch == 2
    assert manifest.source.sha256 == load_checkpoint(checkpoint).sha256
    assert manifest.architecture.unet.config["block_out_channels"] == [16, 32, 48, 48]
    assert manifest.networks["unet"].options.model_dump() == {"controlnet": True}
    assert "openvino" in manifest.versions
    table = bundles["openvino"].token_table(manifest.architecture.text_encoders[0])
    weight = load_checkpoint(checkpoint).text_encoder().text_model.embeddings.token_embedding
    assert np.array_equal(table, weight.weight.half().numpy())


def test_every_stage_is_announced(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    report = sdengine.build(
        checkpoint,
        tmp_path / "b",
        target="torch",
        resolutions=(64,),
        controlnet=False,
        progress=lambda *call: calls.append(call),
    )
    assert [name for name, _, _ in calls] == list(report.seconds)
    assert [done for _, done, _ in calls] == list(range(len(calls)))
    assert {total for _, _, total in calls} == {len(calls)}
    names = [tensor.name for tensor in open_bundle(report.path).network("unet").inputs]
    assert names == ["sample", "timestep", "encoder_hidden_states"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "cuda"}, "target.*native, "),
        ({"precision": "int8"}, "precision.*fp32, bf16, fp16"),
        ({"batch": 0}, "batch.*1 to 64"),
        ({"batch": True}, "batch"),
        ({"resolutions": ()}, "resolutions"),
        ({"resolutions": (100,)}, r"100x100.*multiples of 64 pixels.*nearest is 128x128"),
        ({"resolutions": ((64, 64, 64),)}, "resolutions"),
        ({"resolutions": (1 << 20,)}, "resolutions"),
        ({"resolutions": 512}, "resolutions"),
        ({"resolutions": ("512",)}, "resolutions"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sdengine.build(checkpoint, tmp_path / "bundle", **arguments)
    assert os.listdir(tmp_path) == []


def test_a_taken_place_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    place.mkdir()
    (place / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="exists"):
        sdengine.build(checkpoint, place, resolutions=(64,))
    with pytest.raises(OutputError, match="not a bundle"):
        sdengine.build(checkpoint, place, resolutions=(64,), force=True)
    assert (place / "mine.txt").read_text() == "x"


def test_nothing_is_left_behind_when_a_stage_fails(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = copy / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="complete safetensors"):
        sdengine.build(copy, tmp_path / "bundle", target="torch", resolutions=(64,))
    assert os.listdir(tmp_path) == ["copy"]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 7}, "maps 7 channels.*9 .inpainting"),
        ("unet/config.json", {"cross_attention_dim": 64}, "width 64.*give 32"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type"),
        ("text_encoder/config.json", {"vocab_size": 100}, "knows 49408 tokens"),
        ("sdengine.json", {"defaults": {"guidance_scale": 1e9}}, "guidance_scale"),
        ("sdengine.json", {"defaults": {"sampler": "magic"}}, "sampler"),
        ("sdengine.json", {"defaults": []}, "defaults"),
        ("tokenizer/special_tokens_map.json", {"pad_token": "<nothing>"}, "<nothing>"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    checkpoint: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    old = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    (copy / file).write_text(json.dumps({**old, **changes}))
    with pytest.raises(CheckpointError, match=message):
        sdengine.build(copy, tmp_path / "bundle", target="torch", resolutions=(64,))
    assert os.listdir(tmp_path) == ["copy"]


def test_a_checkpoints_own_defaults_reach_the_bundle(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "sdengine.json").write_text('{"defaults": {"guidance_scale": 3, "steps": 9}}')
    report = sdengine.build(copy, tmp_path / "bundle", target="torch", resolutions=(128, 64))
    defaults = open_bundle(report.path).manifest.defaults
    assert (defaults.guidance_scale, defaults.steps) == (3, 9)
    assert (defaults.width, defaults.height) == (64, 64)  # the checkpoint's own size


def test_weights_that_do_not_fit_the_manifest_are_refused(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    bundle = bundles["torch"]
    content = bundle.manifest.model_dump()
    content["architecture"]["unet"]["config"]["layers_per_block"] = 1
    changed = Bundle(type(bundle.manifest).model_validate(content), bundle.root)
    shapes = resolve_shapes("unet", bundle.network("unet").inputs, SIZES)
    with pytest.raises(BundleError, match="unet"):
        get_backend("torch").open(changed, SessionOptions("fp32")).load("unet", shapes)


def test_one_channel_a_group_is_built(tmp_path: Path) -> None:
    """Pipelines of test suites have as many channels as groups on their finest level."""
    tiny = TINY_SD15
    family = replace(
        tiny,
        unet=replace(
            tiny.unet,
            norm_num_groups=32,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=8,
        ),
        vae=replace(tiny.vae, norm_num_groups=32, block_out_channels=(32,) * 4),
    )
    folder = make_synthetic(family, tmp_path / "checkpoint", seed=1)
    built = sdengine.build(folder, tmp_path / "bundle", resolutions=(128,), cache=False)
    assert max(built.max_error.values()) < 2e-4
    with sdengine.load(built.path) as engine:
        image = engine.generate("a", seed=1, steps=2, width=128, height=128).arrays[0]
    assert image.shape == (128, 128, 3)


def test_guesses_are_in_the_report_and_the_manifest(tmp_path: Path) -> None:
    family = READABLE_SD15
    state = original_state(family, modules_of(family))
    save_file(state, tmp_path / "model.safetensors")
    opened = load_checkpoint(tmp_path / "model.safetensors")
    assert opened.ignored == {"model_ema.decay": "moving averages of training"}
    table = replace(opened.text_encoder_configs["text_encoder"], vocab_size=49408)
    family = replace(family, text_encoders=(table,))
    save_file(original_state(family, modules_of(family)), tmp_path / "whole.safetensors")
    built = sdengine.build(
        tmp_path / "whole.safetensors", tmp_path / "bundle", target="torch", resolutions=(64,)
    )
    assert [guess.what for guess in built.guesses] == ["family", "prediction type", "size"]
    assert built.ignored == opened.ignored
    manifest = open_bundle(built.path).manifest
    assert [guess.model_dump() for guess in manifest.source.guesses] == [
        asdict(guess) for guess in built.guesses
    ]
