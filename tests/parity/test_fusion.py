"""Fused graphs against those that they were made from, in onnxruntime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from support.tiny_checkpoints import make_tiny
from tolerances import assert_close

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.part_source import PartSource
from sdengine.export.cache import OnnxCache
from sdengine.export.exporter import Exporter
from sdengine.export.fused_functions import DOMAIN, OPERATORS
from sdengine.export.fusion import fuse
from sdengine.export.lowering import STANDARD_OPSET, to_plugins, to_standard

FAMILIES = ("tiny", "tiny-sd21", "tiny-sdxl")
NETWORKS = [
    *((family, "unet") for family in FAMILIES),
    ("tiny", "text_encoder"),
    ("tiny-sdxl", "text_encoder_2"),
    ("tiny", "vae_decoder"),
    ("tiny", "vae_encoder"),
]


@pytest.fixture(scope="module")
def exporters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Exporter]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    sources: dict[str, PartSource] = {
        name: load_checkpoint(make_tiny(name, folder / name)) for name in FAMILIES
    }
    with contextlib.ExitStack() as held:
        cache = OnnxCache(held=held)
        yield {name: Exporter(source, cache) for name, source in sources.items()}


def count(model: onnx.ModelProto, *op_types: str) -> int:
    return sum(node.op_type in op_types for node in model.graph.node)


def run(model: onnx.ModelProto, beside: Path, feeds: dict[str, Any]) -> list[np.ndarray]:
    """Run a graph whose weights lie beside another."""
    path = beside.with_name(f"{beside.stem}.changed.onnx")
    onnx.save(model, path)
    try:
        onnx.checker.check_model(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return list(session.run(None, feeds))
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("family", "network", "precision"),
    [(*one, "fp16") for one in NETWORKS] + [(*NETWORKS[0], other) for other in ("fp32", "bf16")],
)
def test_everything_is_recognised_and_nothing_changes(
    exporters: dict[str, Exporter], family: str, network: str, precision: str
) -> None:
    exporter = exporters[family]
    path = exporter.export(network, precision).onnx_path
    assert path is not None
    model = onnx.load(path, load_external_data=False)
    before = model.SerializeToString()
    fused, report = fuse(model)
    assert model.SerializeToString() == before
    assert report.left == {}
    attentions, norms = count(model, "Softmax"), count(model, "InstanceNormalization")
    assert report.found["attention"] == attentions > 0
    assert report.found["group_norm"] == norms
    assert (norms > 0) == (not network.startswith("text_encoder"))
    assert sum(report.replaced.values()) == attentions + norms
    assert count(fused, "Softmax", "InstanceNormalization") == 0
    assert count(fused, *OPERATORS) == attentions + norms
    causal = report.replaced["causal_attention"]
    assert causal == (attentions if network.startswith("text_encoder") else 0)
    if precision == "bf16":
        return  # which onnxruntime's CPU does not compute
    contract = exporter.contract(network, precision)
    inputs = contract.example(2, 128, 64, seed=51)
    feeds = {s.name: x.numpy() for s, x in zip(contract.inputs, inputs, strict=True)}
    row = {"fp32": "float32", "fp16": "float16"}[precision]
    expected = run(model, path, feeds)
    for changed in (fused, to_standard(fused)):
        for ours, theirs in zip(run(changed, path, feeds), expected, strict=True):
            assert_close("fused graph", row, ours, theirs)


def test_norms_before_silu_take_it_in(exporters: dict[str, Exporter]) -> None:
    path = exporters["tiny"].export("unet").onnx_path
    assert path is not None
    _, report = fuse(onnx.load(path, load_external_data=False))
    # Two in each of 22 residual blocks and the last one; the transformers' have no SiLU.
    assert report.replaced == {"group_norm_silu": 45, "group_norm": 16, "attention": 32}


def test_graphs_of_fixed_shapes_are_fused_as_well(exporters: dict[str, Exporter]) -> None:
    path = exporters["tiny"].export_static("unet", "fp16", 2, 64, 64, check=False).onnx_path
    assert path is not None
    _, report = fuse(onnx.load(path, load_external_data=False))
    assert report.left == {}
    assert sum(report.replaced.values()) == 45 + 16 + 32


def test_lowered_graphs_have_no_functions_left(exporters: dict[str, Exporter]) -> None:
    path = exporters["tiny"].export("unet", "fp16").onnx_path
    assert path is not None
    fused, report = fuse(onnx.load(path, load_external_data=False))
    standard, plugins = to_standard(fused), to_plugins(fused, lambda node: True)
    for lowered in (standard, plugins):
        assert not lowered.functions
        assert all(node.domain == "" for node in lowered.graph.node)
        assert {opset.domain for opset in lowered.opset_import} == {""}
        assert [opset.version for opset in lowered.opset_import] == [STANDARD_OPSET]
    assert count(standard, "Attention") == report.found["attention"]
    assert count(standard, "GroupNormalization") == report.found["group_norm"]
    node = next(node for node in plugins.graph.node if node.op_type == "attention")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert attributes.pop("scale") == pytest.approx(4**-0.5)
    assert attributes == {"plugin_namespace": DOMAIN.encode(), "plugin_version": b"1", "aot": 1}


def test_nodes_without_a_plugin_stay_standard(exporters: dict[str, Exporter]) -> None:
    path = exporters["tiny-sdxl"].export("unet", "fp16").onnx_path
    assert path is not None
    fused, report = fuse(onnx.load(path, load_external_data=False))
    assert set(report.head_dims.values()) == {8, 6}
    plugins = to_plugins(fused, lambda node: report.head_dims.get(node.name) == 6)
    fitting = sum(head_dim == 6 for head_dim in report.head_dims.values())
    assert count(plugins, "attention") == fitting
    assert count(plugins, "Attention") == report.found["attention"] - fitting
    assert count(plugins, "GroupNormalization") == report.found["group_norm"]


def altered(model: onnx.ModelProto, op_type: str, change: Any) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    change(next(node for node in changed.graph.node if node.op_type == op_type), changed.graph)
    return changed


def test_what_is_no_attention_stays(exporters: dict[str, Exporter]) -> None:
    path = exporters["tiny"].export("text_encoder").onnx_path
    assert path is not None
    model = onnx.load(path, load_external_data=False)

    def lower_triangle(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        next(a for a in node.attribute if a.name == "upper").i = 0

    _, report = fuse(altered(model, "Trilu", lower_triangle))
    assert set(report.left.values()) == {"a mask that is not causal"}
    assert report.replaced == {}

    def watch_scores(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        graph.output.append(
            helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        )

    fused, report = fuse(altered(model, "Softmax", watch_scores))
    assert len(report.left) == 1
    assert count(fused, "Softmax") == 1


def test_what_is_no_group_norm_stays(exporters: dict[str, Exporter]) -> None:
    path = exporters["tiny"].export("vae_decoder").onnx_path
    assert path is not None
    model = onnx.load(path, load_external_data=False)

    def swap(node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        node.input[1], node.input[2] = node.input[2], node.input[1]

    _, report = fuse(altered(model, "InstanceNormalization", swap))
    assert list(report.left.values()) == ["an instance normalisation with weights of its own"]
