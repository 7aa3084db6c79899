"""Exported graphs of every family on the native target, and the demo bundle against its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.single_network import files_as_bundle
from support.tiny_architectures import TINY_SD15, TINY_SDXL
from support.tiny_checkpoints import FAMILIES, make_tiny, save_adapter, save_controlnet, save_union
from tolerances import assert_close

from sdengine.backends.base import SessionOptions
from sdengine.backends.native.backend import NativeBackend
from sdengine.backends.native.graph import read_graph
from sdengine.backends.native.projections import additive_inputs
from sdengine.bundle.controls import is_feature
from sdengine.bundle.reader import DEMO_BUNDLE
from sdengine.bundle.tensors import TensorSpec
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.checkpoints.controls import SteeredCheckpoint
from sdengine.checkpoints.part_source import PartSource
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.native.compile import compile_native
from sdengine.errors import ConfigError, EngineBuildError
from sdengine.export.cache import OnnxCache
from sdengine.export.exporter import Exporter
from sdengine.export.network import export_contract
from sdengine.models.contracts import unet_contract
from sdengine.models.network_contract import NetworkContract
from sdengine.models.unet import UNet2DConditionModel
from sdengine.storage.tensor_file import map_tensors

FP16 = CompileSpec("fp16", ())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> OnnxCache:
    return OnnxCache(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_the_demo_bundle_is_what_its_checkpoint_compiles_to(
    cache: OnnxCache, tmp_path: Path, network: str
) -> None:
    exported = Exporter(load_checkpoint("demo"), cache).export(network)
    graph, weights = compile_native(exported, tmp_path, FP16).files
    assert read_graph(tmp_path / graph) == read_graph(DEMO_BUNDLE / graph)
    found, packaged = map_tensors(tmp_path / weights), map_tensors(DEMO_BUNDLE / weights)
    assert found.keys() == packaged.keys()
    for name, tensor in packaged.items():
        assert tensor.dtype == found[name].dtype
        # Frequencies are computed, and exponentials differ by processor.
        exact = not name.endswith(".frequencies")
        np.testing.assert_allclose(found[name], tensor, rtol=0 if exact else 3e-7)


@pytest.mark.parametrize("family", [*FAMILIES, "union", "adapter"])
def test_every_network_of_every_family(
    cache: OnnxCache, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "packed"))
    source: PartSource
    if family == "controlnet":
        source = read_controlnet(save_controlnet(tmp_path / family))
    elif family == "union":
        save_union(tmp_path / family)
        source = read_controlnet(tmp_path / family)
    elif family == "adapter":
        save_adapter(tmp_path / family, "tiny")
        source = SteeredCheckpoint(
            load_checkpoint(make_tiny("tiny", tmp_path / "base")),
            {"sketch": read_controlnet(tmp_path / family)},
        )
    else:
        source = load_checkpoint(make_tiny(family, tmp_path / family))
    exporter = Exporter(source, cache)
    networks = exporter.networks if family != "adapter" else ("control_sketch",)
    for network in networks:
        contract = exporter._contract(network, exporter.module(network).float(), "fp32")
        assert_runs_as_torch(contract, exporter.export(network), tmp_path)


@pytest.mark.parametrize("family", ["tiny", "tiny-sdxl"])
def test_unets_of_inpainting_that_read_no_residuals(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "packed"))
    config = {"tiny": TINY_SD15, "tiny-sdxl": TINY_SDXL}[family].unet
    for channels in (5, 9):
        module = UNet2DConditionModel(replace(config, in_channels=channels))
        seed_weights(module, seed=channels)
        contract = unet_contract(module, controlnet=False)
        folder = tmp_path / f"{channels}"
        folder.mkdir()
        assert_runs_as_torch(contract, export_contract(contract, module, folder), folder)


def test_unets_that_read_features_of_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all are zero, additions of them are left out: adapters cost nothing unless used."""
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "packed"))
    module = UNet2DConditionModel(TINY_SDXL.unet)
    seed_weights(module, seed=4)
    contract = unet_contract(module, adapters=True)
    exported = export_contract(contract, module, tmp_path)
    assert_runs_as_torch(contract, exported, tmp_path)
    graph = read_graph(tmp_path / compile_native(exported, tmp_path, FP16).files[0])
    names = {spec.name for spec in contract.inputs if is_feature(spec.name)}
    assert len(names) == 4 and names <= additive_inputs(graph)


class _Halved(torch.nn.Module):
    """What T2I-Adapters halve maps by, between layers that every network has."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = torch.nn.Conv2d(5, 12, 3, padding=1), torch.nn.Conv2d(12, 7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(torch.nn.functional.avg_pool2d(self.before(x), 2))
        return out


def test_means_of_squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "packed"))
    module = _Halved()
    seed_weights(module, seed=9)
    given = TensorSpec("x", ("batch", 5, "height/8", "width/8"), "float32")
    made = TensorSpec("y", ("batch", 7, "height/16", "width/16"), "float32")
    contract = NetworkContract("halved", module, (given,), (made,), 16)
    exported = export_contract(contract, module, tmp_path)
    assert_runs_as_torch(contract, exported, tmp_path)
    (tmp_path / "fp16").mkdir()
    files = compile_native(exported, tmp_path / "fp16", FP16).files  # constants are rounded too
    kept = map_tensors(tmp_path / "fp16" / files[1])["means_of_12_channels.weight"]
    np.testing.assert_array_equal(kept.astype(np.float32)[3, 3], np.full((2, 2), 0.25))


def assert_runs_as_torch(contract: NetworkContract, exported: Any, folder: Path) -> None:
    """Compile the network and compare every output with the module's."""
    example = contract.example(2, 2 * contract.multiple, 3 * contract.multiple, seed=5)
    files = compile_native(exported, folder, CompileSpec("fp32", ())).files
    inputs = {s.name: x.numpy() for s, x in zip(contract.inputs, example, strict=True)}
    shapes = {name: array.shape for name, array in inputs.items()}
    module = (
        NativeBackend()
        .open(files_as_bundle(folder, contract, files), SessionOptions(precision="fp32"))
        .load(contract.name, shapes)
    )
    found = module.run(inputs)
    with torch.no_grad():
        outputs = contract.module(*example)
    expected = (outputs,) if torch.is_tensor(outputs) else outputs
    assert len(found) == len(expected) == len(contract.outputs)
    for spec, wanted in zip(contract.outputs, expected, strict=True):
        assert_close("native network", "float32", found[spec.name], wanted)


def test_a_weight_that_overflows_is_named(tmp_path: Path, cache: OnnxCache) -> None:
    exported = Exporter(load_checkpoint("demo"), cache).export("vae_encoder")
    with pytest.raises(ConfigError, match=r"precision.*int4"):
        compile_native(exported, tmp_path, CompileSpec("int4", ()))
    assert exported.onnx_path is not None
    data = exported.onnx_path.with_name(exported.onnx_path.name + ".data")
    values = np.memmap(data, np.float32, "r+")
    kept = values[:16].copy()
    values[:16] = 1e6
    try:
        with pytest.raises(EngineBuildError, match=r"vae_encoder: weight '.*' is not finite"):
            compile_native(exported, tmp_path, FP16)
        assert not list(tmp_path.glob("*.safetensors"))
    finally:
        values[:16] = kept
