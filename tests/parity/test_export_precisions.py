"""Exports of every network of every family in every precision, and of fixed shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.tiny_architectures import TINY_SD15
from support.tiny_checkpoints import FAMILIES, make_tiny, save_controlnet
from tolerances import assert_close

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.controlnet import read_controlnet
from sdengine.checkpoints.part_source import PartSource
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.errors import ConfigError, ExportError
from sdengine.export.cache import OnnxCache
from sdengine.export.comparison import MAX_ERROR
from sdengine.export.exporter import Exporter
from sdengine.export.fp32_rendition import render_in_fp32
from sdengine.export.network import export_network
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.vae import AutoencoderKL

ONNX_TYPES = {
    "fp32": onnx.TensorProto.FLOAT,
    "bf16": onnx.TensorProto.BFLOAT16,
    "fp16": onnx.TensorProto.FLOAT16,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PartSource]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, PartSource] = {
        name: load_checkpoint(make_tiny(name, folder / name)) for name in FAMILIES[:-1]
    }
    made["controlnet"] = read_controlnet(save_controlnet(folder / "controlnet"))
    return made


@pytest.fixture(scope="module")
def cache() -> Iterator[OnnxCache]:
    with contextlib.ExitStack() as held:
        yield OnnxCache(held=held)


@pytest.mark.parametrize(
    ("family", "precision"),
    # Precisions differ in what rounds, families in what there is.
    [(family, "fp16") for family in FAMILIES]
    + [(FAMILIES[0], precision) for precision in TORCH_DTYPES if precision != "fp16"],
)
def test_every_network_of_every_family(
    sources: dict[str, PartSource], cache: OnnxCache, family: str, precision: str
) -> None:
    exporter = Exporter(sources[family], cache)
    for network in exporter.networks:
        exported = exporter.export(network, precision)
        assert exported.max_error is not None and exported.onnx_path is not None
        assert exported.max_error <= MAX_ERROR[TORCH_DTYPES[precision]]
        model = onnx.load(exported.onnx_path, load_external_data=False)
        assert {t.data_type for t in model.graph.initializer} == {ONNX_TYPES[precision]}
        found = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
        kept = {"timestep", "time_ids"} & found.keys()
        assert {found[name] for name in kept} <= {onnx.TensorProto.FLOAT}
        others = found.keys() - kept - {"eos_index"}
        assert {found[name] for name in others} == {ONNX_TYPES[precision]}
        onnx.checker.check_model(str(exported.onnx_path))


def test_names_the_networks(sources: dict[str, PartSource], cache: OnnxCache) -> None:
    vae_and_unet = ("unet", "vae_decoder", "vae_encoder")
    assert Exporter(sources["tiny"], cache).networks == ("text_encoder", *vae_and_unet)
    refiner = Exporter(sources["tiny-sdxl-refiner"], cache).networks
    assert refiner == ("text_encoder_2", *vae_and_unet)
    assert Exporter(sources["controlnet"], cache).networks == ("controlnet",)
    with pytest.raises(ConfigError, match="network: 'unet' is not accepted; expected controlnet"):
        Exporter(sources["controlnet"], cache).export("unet")


@pytest.mark.parametrize(
    ("family", "network", "precision"),
    [
        *((family, "unet", "fp16") for family in FAMILIES[:-1]),
        ("tiny", "unet", "fp32"),
        ("tiny-sdxl", "text_encoder_2", "fp16"),
        ("tiny", "vae_decoder", "fp16"),
        ("tiny", "vae_encoder", "fp16"),
        ("controlnet", "controlnet", "fp16"),
    ],
)
def test_fixed_shapes_compute_the_same_without_shape_arithmetic(
    sources: dict[str, PartSource], cache: OnnxCache, family: str, network: str, precision: str
) -> None:
    exporter = Exporter(sources[family], cache)
    symbolic = exporter.export(network, precision)
    fixed = exporter.export_static(network, precision, 2, 128, 64)
    assert fixed.onnx_path is not None and symbolic.onnx_path is not None
    model = onnx.load(fixed.onnx_path, load_external_data=False)
    assert not {"Shape", "Range"} & {n.op_type for n in model.graph.node}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name
    contract = exporter.contract(network, precision)
    inputs = contract.example(2, 128, 64, seed=41)
    named = {s.name: x.numpy() for s, x in zip(contract.inputs, inputs, strict=True)}
    results = []
    for path in (fixed.onnx_path, symbolic.onnx_path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results.append(session.run(None, named))
    row = {"fp32": "float32", "fp16": "float16"}[precision]
    for ours, theirs in zip(*results, strict=True):
        assert_close("graph of fixed shapes", row, ours, theirs)


def test_the_same_weights_and_shapes_are_exported_once(
    sources: dict[str, PartSource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = OnnxCache(tmp_path / "cache")
    first = Exporter(sources["tiny"], cache)
    made = [first.export("vae_decoder"), first.export_static("vae_decoder", "fp32", 1, 64, 64)]
    assert [one.reused for one in made] == [False, False]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr("sdengine.export.exporter.export_contract", refuse)
    monkeypatch.setattr("sdengine.export.exporter.fix_shapes", refuse)
    copy = load_checkpoint(make_tiny("tiny", tmp_path / "copy"))
    second = Exporter(copy, OnnxCache(tmp_path / "cache"))
    again = [second.export("vae_decoder"), second.export_static("vae_decoder", "fp32", 1, 64, 64)]
    assert [one.reused for one in again] == [True, True]
    for one, other in zip(made, again, strict=True):
        assert (one.onnx_path, one.max_error) == (other.onnx_path, other.max_error)
    different = load_checkpoint(make_tiny("tiny", tmp_path / "other", seed=1))
    with pytest.raises(AssertionError, match="exported again"):
        second.export("vae_decoder", "fp16")
    with pytest.raises(AssertionError, match="exported again"):
        second.export_static("vae_decoder", "fp32", 2, 64, 64)
    with pytest.raises(AssertionError, match="exported again"):
        Exporter(different, cache).export("vae_decoder")


def test_bf16_graphs_are_compared_with_the_numbers_of_their_weights(
    sources: dict[str, PartSource], cache: OnnxCache
) -> None:
    exported = Exporter(sources["tiny"], cache).export("vae_decoder", "bf16")
    assert exported.onnx_path is not None
    model = onnx.load(exported.onnx_path, load_external_data=False)
    rendered = render_in_fp32(model)
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    assert {t.data_type for t in rendered.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    kinds = {v.type.tensor_type.elem_type for v in (*rendered.graph.input, *rendered.graph.output)}
    assert kinds == {onnx.TensorProto.FLOAT}


def seeded_vae() -> AutoencoderKL:
    module = AutoencoderKL(TINY_SD15.vae)
    seed_weights(module, seed=11)
    return module.requires_grad_(False).eval()


def test_a_weight_that_fp16_cannot_hold_is_named(tmp_path: Path) -> None:
    module = seeded_vae()
    module.get_parameter("decoder.conv_in.weight")[0, 0, 0, 0] = 1e6
    with pytest.raises(ExportError, match=r"decoder\.conv_in\.weight.*fp32 or bf16"):
        export_network("vae_decoder", module, tmp_path, precision="fp16")
    assert export_network("vae_decoder", module, tmp_path, precision="bf16").max_error is not None


def test_values_that_leave_the_range_of_fp16_are_found(tmp_path: Path) -> None:
    """The published SDXL autoencoder does this: every weight fits, what it computes does not."""
    module = seeded_vae()
    module.get_parameter("decoder.conv_in.weight").mul_(1e5)
    with pytest.raises(ExportError, match=r"decoder\.conv_in gives .* fp32 or bf16"):
        export_network("vae_decoder", module, tmp_path, precision="fp16")


def test_a_graph_that_rounds_more_than_its_precision_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MAX_ERROR, torch.float16, 1e-5)
    with pytest.raises(ExportError, match="accepted is 1e-05"):
        export_network("vae_decoder", seeded_vae(), tmp_path, precision="fp16")


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision: 'int8' is not accepted; expected fp32"):
        export_network("vae_decoder", seeded_vae(), tmp_path, precision="int8")
    assert not list(tmp_path.iterdir())


def test_where_memory_lacks_the_graph_is_not_compared(
    sources: dict[str, PartSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Exporter(sources["tiny"], OnnxCache(tmp_path))
    monkeypatch.setattr("sdengine.export.exporter.free_bytes", lambda: 1000)
    fixed = exporter.export_static("vae_decoder", "fp32", 1, 64, 64)
    assert fixed.max_error is None
    monkeypatch.undo()
    unasked = exporter.export_static("vae_decoder", "fp32", 1, 64, 64, check=False)
    assert (unasked.max_error, unasked.reused) == (None, True)
    compared = exporter.export_static("vae_decoder", "fp32", 1, 64, 64)
    assert compared.max_error is not None
    assert exporter.export("vae_decoder").max_error is not None
    assert fixed.onnx_path is not None
    session = onnxruntime.InferenceSession(str(fixed.onnx_path))
    (image,) = session.run(None, {"latents": np.zeros((1, 4, 8, 8), np.float32)})
    assert image.shape == (1, 3, 64, 64)
