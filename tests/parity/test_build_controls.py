"""Controls built into bundles: their networks against the torch modules, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_checkpoints import make_tiny, save_controlnet
from tolerances import assert_close

import sdengine
from sdengine.backends import get_backend
from sdengine.backends.base import SessionOptions
from sdengine.building import memory_estimate
from sdengine.bundle.controls import control_network
from sdengine.bundle.manifest import Manifest, parse_manifest
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.bundle.tensors import resolve_shapes
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.architecture_source import ArchitectureSource, architecture_of_bundle
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.checkpoints.controls import SteeredCheckpoint, open_controls
from sdengine.cli.inspect import _lines
from sdengine.cli.main import main
from sdengine.errors import BundleError, CheckpointError, ConfigError
from sdengine.export.cache import OnnxCache
from sdengine.export.exporter import Exporter
from sdengine.models.contracts import controlnet_contract
from sdengine.models.controlnet import ControlNetModel

TARGET = "torch"
CANNY = control_network("canny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    make_tiny("tiny", folder / "tiny")
    save_controlnet(folder / "sd1", "tiny")
    save_controlnet(folder / "sdxl", "tiny-sdxl")
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    sdengine.build(
        folder / "tiny",
        folder / "bundle",
        target=TARGET,
        resolutions=(64, (128, 64)),
        precision="fp32",
        controls={"canny": folder / "sd1"},
    )
    return open_bundle(folder / "bundle", verify="hash")


def test_a_control_computes_what_its_module_does(folder: Path, bundle: Bundle) -> None:
    module = read_controlnet(folder / "sd1").load("controlnet")
    assert isinstance(module, ControlNetModel)
    contract = controlnet_contract(module)
    inputs = contract.example(1, 64, 128, seed=3)
    with torch.no_grad():
        expected = contract.module(*inputs)
    sizes = {"batch": 1, "height": 64, "width": 128, "sequence": 77}
    shapes = resolve_shapes(CANNY, bundle.network(CANNY).inputs, sizes)
    loaded = get_backend(TARGET).open(bundle, SessionOptions("fp32", 1)).load(CANNY, shapes)
    found = loaded.run({s.name: x.numpy() for s, x in zip(contract.inputs, inputs, strict=True)})
    assert [spec.name for spec in loaded.outputs] == [spec.name for spec in contract.outputs]
    for spec, value in zip(contract.outputs, expected, strict=True):
        assert value.abs().max() > 0
        assert_close("controlnet", "float32", found[spec.name], value)


def test_the_manifest_says_what_runs_need(folder: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    (control,) = manifest.architecture.controls.values()
    assert (control.kind, control.conditioning_channels, control.residuals) == ("controlnet", 3, 13)
    assert (control.source, control.global_pool) == ("sd1", False)
    assert control.sha256 == read_controlnet(folder / "sd1").part_sha256("controlnet")
    assert "controls" not in json.loads(open_bundle().manifest.model_dump_json())["architecture"]
    shown = "\n".join(_lines(manifest))
    assert "control     canny: controlnet of sd1, 13 residuals" in shown
    assert f"network     {CANNY}: " in shown


def test_a_control_is_exported_once_whatever_its_name(folder: Path, tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path)
    checkpoint = load_checkpoint(folder / "tiny")

    def exporter(name: str) -> Exporter:
        controls = open_controls({name: folder / "sd1"}, checkpoint)
        return Exporter(SteeredCheckpoint(checkpoint, controls), cache)

    first = exporter("canny").export(CANNY)
    second = exporter("edges").export(control_network("edges"))
    assert (first.reused, second.reused) == (False, True)
    assert (first.name, second.name) == (CANNY, control_network("edges"))
    assert second.onnx_path == first.onnx_path


def test_estimates_count_controls(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"text_encoder": 10, "unet": 1000, "vae_decoder": 500, "vae_encoder": 400}
    known |= {CANNY: 300}  # of their graphs
    monkeypatch.setattr(
        memory_estimate, "_scratch_bytes", lambda _, name, *rest: {(64, 64): known[name]}
    )
    manifest = bundle.manifest
    source = architecture_of_bundle(manifest.name, manifest.architecture)
    found = memory_estimate.estimate_memory(source, precision="fp32", resolutions=(64,))
    shapes = source.shapes(CANNY).values()
    assert found.weight_bytes[CANNY] == 4 * sum(int(np.prod(shape)) for shape in shapes)
    (size,) = found.sizes
    alone = ArchitectureSource("", {n: c for n, c in source.configs.items() if n != CANNY})
    (plain,) = memory_estimate.estimate_memory(alone, precision="fp32", resolutions=(64,)).sizes
    assert size.pool_bytes == plain.pool_bytes + 300  # beside what the U-Net computes in
    more = found.weight_bytes[CANNY] + 300
    assert size.total_bytes == plain.total_bytes + more
    assert size.low_total_bytes == plain.low_total_bytes + more  # the U-Net's stage is its own


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("tiny-sdxl", r"control canny: .*sdxl is for sdxl .*width 64\); tiny is sd1 \(32\)"),
        ("tiny-sd21", None),  # at this size, nothing of their shapes tells the two apart
    ],
)
def test_a_control_of_another_family_is_refused_by_its_shapes(
    folder: Path, tmp_path: Path, family: str, named: str | None
) -> None:
    control = folder / "sdxl" if named else save_controlnet(tmp_path / family, family)
    checkpoint = load_checkpoint(folder / "tiny")
    if named is None:
        assert open_controls({"canny": control}, checkpoint)["canny"].name == family
        return
    with pytest.raises(CheckpointError, match=named):
        open_controls({"canny": control}, checkpoint)


def test_published_families_are_named(folder: Path, tmp_path: Path) -> None:
    """Widths of the published models on networks that are tiny otherwise."""
    content = json.loads((folder / "sd1/config.json").read_text())
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl/config.json").write_text(json.dumps({**content, "cross_attention_dim": 2048}))
    with pytest.raises(CheckpointError, match=r"is for sdxl \(text embeddings of width 2048\)"):
        open_controls({"canny": tmp_path / "sdxl"}, load_checkpoint(folder / "tiny"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_channels": 9}, "latent channels 9.*4"),
        ({"conditioning_embedding_out_channels": [16, 32, 96]}, "to a latent cell 4.*8"),
        ({"layers_per_block": 1}, r"residuals 8: .*12: "),
        ({"_class_name": "MultiControlNetModel"}, "not a ControlNetModel"),
        ({"controlnet_conditioning_channel_order": "gbr"}, "channel_order is 'gbr'"),
    ],
)
def test_what_does_not_fit_is_named(
    folder: Path, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    content = json.loads((folder / "sd1/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(CheckpointError, match=named):
        open_controls({"a": tmp_path}, load_checkpoint(folder / "tiny"))


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"controls": {"Canny": "x"}}, ConfigError, "controls: 'Canny' .*small letters"),
        ({"controls": {"../x": "x"}}, ConfigError, "controls: '../x'"),
        ({"controls": "x"}, ConfigError, "controls: 'x' .*by the controls' names"),
        ({"controls": {"a": "x"}, "controlnet": False}, ConfigError, "no residuals. Leave one out"),
        ({"controls": {"a": "nowhere"}}, CheckpointError, "control a: 'nowhere' is neither"),
        ({"controls": {"a": 3}}, ConfigError, "control a: 3"),
        ({"controls": {"a": "sdxl"}}, CheckpointError, "control a: sdxl is for"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    named: str,
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=named):
        sdengine.build("tiny", tmp_path / "bundle", resolutions=(64,), **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", ["canny", "canny=", "=", "canny=sdxl"])
def test_the_command_refuses_the_same(
    folder: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    code = main(["build", "tiny", "-o", str(tmp_path / "b"), "--control", given])
    assert code != 0 and "control" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def changed(manifest: Manifest, change: str) -> bytes:
    content = json.loads(manifest.model_dump_json())
    control = content["architecture"]["controls"]["canny"]
    if change == "no network":
        del content["networks"][CANNY]
    elif change == "no record":
        del content["architecture"]["controls"]
    elif change == "no residuals":
        inputs = content["networks"]["unet"]["inputs"]
        content["networks"]["unet"]["inputs"] = inputs[:3]
    elif change == "other name":
        content["architecture"]["controls"] = {"Canny!": control}
    else:
        control["kind"] = change
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("no network", "control_canny: it is not both"),
        ("no record", "control_canny: it is not both"),
        ("no residuals", "the U-Net reads 0"),
        ("other name", "no name of a control"),
        ("of_tomorrow", "kind"),
    ],
)
def test_a_manifest_that_does_not_fit_itself_is_refused(
    bundle: Bundle, change: str, named: str
) -> None:
    with pytest.raises(BundleError, match=named):
        parse_manifest(changed(bundle.manifest, change))
