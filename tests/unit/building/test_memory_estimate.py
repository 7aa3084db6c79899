"""Memory estimates, against sums by hand and against what torch allocates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.tiny_architectures import TINY_SD15, TINY_SDXL
from support.tiny_checkpoints import make_tiny

from sdengine import _native
from sdengine.backends.shared_arena import MAX_EVALUATIONS, MAX_REGISTERS
from sdengine.building.memory_estimate import BuiltMemory, built_memory, estimate_memory
from sdengine.bundle.manifest import NetworkOptions
from sdengine.bundle.reader import open_bundle
from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.architecture_source import published_architecture, source_of
from sdengine.cli.main import main
from sdengine.errors import CheckpointError, ConfigError
from sdengine.export.liveness import peak_activation_bytes
from sdengine.export.trace import trace
from sdengine.models.network_contract import NetworkContract
from sdengine.models.unet import UNet2DConditionModel
from sdengine.storage.byte_size import parse_bytes


@pytest.fixture(autouse=True)
def each_network_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace equal networks once for all tests here: it takes seconds, whatever their size."""

    def traced(contract: NetworkContract, path: Path) -> onnx.ModelProto:
        shapes = tuple((n, tuple(t.shape)) for n, t in contract.module.state_dict().items())
        key = (contract.name, contract.dtype, contract.inputs, contract.outputs, shapes)
        if key not in _TRACED:
            _TRACED[key] = trace(contract, path)
        copied = onnx.ModelProto()
        copied.CopyFrom(_TRACED[key])
        return copied

    monkeypatch.setattr("sdengine.building.memory_estimate.trace", traced)


_TRACED: dict[Any, onnx.ModelProto] = {}


def graph(nodes: list[onnx.NodeProto], sizes: dict[str, int]) -> onnx.ModelProto:
    """Make a graph from x to y, both of 100 floats, with these between."""

    def info(name: str, size: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])

    between = [info(name, size) for name, size in sizes.items()]
    made = helper.make_graph(nodes, "g", [info("x", 100)], [info("y", 100)], value_info=between)
    return helper.make_model(made)


def node(op_type: str, sources: str, target: str) -> onnx.NodeProto:
    return helper.make_node(op_type, sources.split(), [target])


@pytest.mark.parametrize(
    ("nodes", "sizes", "floats"),
    [
        # A chain: two neighbours at a time.
        (["Conv x a", "Conv a b", "Conv b y"], {"a": 30, "b": 50}, 80),
        # A tensor that is read again later stays.
        (["Conv x a", "Conv a b", "Conv b c", "Concat a,c y"], {"a": 30, "b": 50, "c": 40}, 120),
        # In place, because nobody reads a again.
        (["Conv x a", "Sigmoid a b", "Conv b y"], {"a": 30, "b": 30}, 30),
        # Not in place, because somebody does.
        (["Conv x a", "Sigmoid a b", "Mul a,b y"], {"a": 30, "b": 30}, 60),
        # A view takes nothing, and keeps what it is a view of.
        (["Conv x a", "Reshape a b", "Conv b c", "Add b,c y"], {"a": 30, "b": 30, "c": 7}, 37),
    ],
)
def test_liveness(nodes: list[str], sizes: dict[str, int], floats: int) -> None:
    made = []
    for text in nodes:
        op_type, sources, target = text.split()
        made.append(node(op_type, sources.replace(",", " "), target))
    assert peak_activation_bytes(graph(made, sizes)) == 4 * floats


def test_a_plan_adds_up() -> None:
    source = source_of(TINY_SD15)
    plan = estimate_memory(source, precision="fp16", resolutions=[64, (128, 64)], batch=2)
    assert [(size.width, size.height, size.batch) for size in plan.sizes] == [
        (64, 64, 2),
        (128, 64, 2),
    ]
    with torch.device("meta"):
        unet = UNet2DConditionModel(TINY_SD15.unet)
    assert plan.weight_bytes["unet"] == 2 * sum(p.numel() for p in unet.parameters())
    assert plan.weight_bytes.keys() == {"text_encoder", "unet", "vae_decoder"}
    resident = sum(plan.weight_bytes.values())
    for size in plan.sizes:
        shape = [2, 4, size.height // 8, size.width // 8]
        regions = sum(
            region[1]
            for region in _native.trajectory_regions(shape, 2, MAX_EVALUATIONS, MAX_REGISTERS)
        )
        assert size.pool_bytes == regions + size.width * size.height * 3 * 3
        assert size.total_bytes == resident + max(size.scratch_bytes.values()) + size.pool_bytes
        alone = [plan.weight_bytes[n] + scratch for n, scratch in size.scratch_bytes.items()]
        assert size.low_total_bytes == max(alone) + size.pool_bytes < size.total_bytes
        # The encoder's weights and maps are about the decoder's; only some requests run it.
        assert size.more_bytes.keys() == {"vae_encoder"}
        decoder = plan.weight_bytes["vae_decoder"] + size.scratch_bytes["vae_decoder"]
        assert 0.2 * decoder < size.more_bytes["vae_encoder"] < decoder
    small, large = plan.sizes
    assert large.scratch_bytes["vae_decoder"] == pytest.approx(
        2 * small.scratch_bytes["vae_decoder"], rel=0.05
    )
    assert large.scratch_bytes["text_encoder"] == small.scratch_bytes["text_encoder"]
    double = estimate_memory(source, precision="fp32", resolutions=[64], batch=2)
    for name, size_bytes in double.weight_bytes.items():
        assert size_bytes == 2 * plan.weight_bytes[name]
    assert double.sizes[0].scratch_bytes["unet"] == pytest.approx(
        2 * small.scratch_bytes["unet"], rel=0.05
    )


def test_scratch_is_at_least_what_must_live_together() -> None:
    """The U-Net's kept results alone: all are there when the way up begins."""
    config = TINY_SD15.unet
    plan = estimate_memory(source_of(TINY_SD15), precision="fp16", resolutions=[64])
    kept, side = 0, 8
    levels = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for channels, level in zip(config.residual_channels, levels, strict=True):
        kept += 2 * 2 * channels * (side >> level) ** 2
    assert kept < plan.sizes[0].scratch_bytes["unet"] < 8 * kept


def test_what_a_builder_told_counts_where_it_holds() -> None:
    source = source_of(TINY_SD15)
    built = BuiltMemory("fp16", 1, {"unet": 10**6}, {"unet": {(64, 64): 5 * 10**6}})
    estimated = estimate_memory(source, resolutions=[64, 128])
    told = estimate_memory(source, resolutions=[64, 128], built=built)
    assert [size.told for size in estimated.sizes] == [[], []]
    assert [size.told for size in told.sizes] == [["unet"], []]
    assert told.weight_bytes == {**estimated.weight_bytes, "unet": 10**6}
    small, large = told.sizes
    assert small.scratch_bytes == {**estimated.sizes[0].scratch_bytes, "unet": 5 * 10**6}
    assert large.scratch_bytes == estimated.sizes[1].scratch_bytes
    resident = sum(told.weight_bytes.values())
    assert small.total_bytes == resident + 5 * 10**6 + small.pool_bytes
    for options in ({"precision": "bf16"}, {"batch": 2}):
        given: dict[str, Any] = {"resolutions": [64], **options}
        assert estimate_memory(source, built=built, **given) == estimate_memory(source, **given)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scratch_bytes": {"128x128": 5}},  # which follows from the graph
        {"scratch_bytes": {"128x128": 5}, "scratch_from": "graph"},
        {"scratch_bytes": {"64x64": 5}, "scratch_from": "builder"},  # not a size of the bundle
    ],
)
def test_what_no_builder_told_does_not_count(options: dict[str, Any]) -> None:
    manifest = open_bundle("demo", verify="size").manifest
    unet = manifest.networks["unet"].model_copy(
        update={"options": NetworkOptions.model_validate(options)}
    )
    claimed = manifest.model_copy(update={"networks": {**manifest.networks, "unet": unet}})
    found = built_memory(claimed)
    assert found is None or (found.scratch_bytes == {"unet": {}} and not found.weight_bytes)


def test_a_manifest_says_what_the_builder_told() -> None:
    manifest = open_bundle("demo", verify="size").manifest
    told = {"scratch_bytes": {"128x128": 5}, "scratch_from": "builder", "weight_bytes": 7}
    unet = manifest.networks["unet"].model_copy(
        update={"options": NetworkOptions.model_validate(told)}
    )
    claimed = manifest.model_copy(update={"networks": {**manifest.networks, "unet": unet}})
    expected = BuiltMemory(
        manifest.precision, manifest.max_batch, {"unet": 7}, {"unet": {(128, 128): 5}}
    )
    assert built_memory(claimed) == expected


def test_checkpoints_and_architectures_plan_alike(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(make_tiny("tiny-sdxl", tmp_path / "checkpoint"))
    planned = estimate_memory(checkpoint, resolutions=[64])
    published = estimate_memory(source_of(TINY_SDXL), resolutions=[64])
    assert planned.weight_bytes == published.weight_bytes
    assert planned.sizes == published.sizes
    assert planned.weight_bytes.keys() == {
        "text_encoder",
        "text_encoder_2",
        "unet",
        "vae_decoder",
    }


def test_sizes_follow_the_model() -> None:
    plan = estimate_memory(source_of(TINY_SD15), precision="fp16")
    side = TINY_SD15.unet.sample_size * 8
    wanted = [side, max(64, round(1.5 * side / 64) * 64), 2 * side]
    assert [size.width for size in plan.sizes] == list(dict.fromkeys(wanted))


def test_no_graph_is_traced_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    source = source_of(TINY_SD15)
    told: list[str] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append(what)

    first = estimate_memory(source, resolutions=[64], progress=tell)
    assert [what for what in told if what.startswith("trace")] == [
        f"trace {name}" for name in (*first.weight_bytes, *first.sizes[0].more_bytes)
    ]
    told.clear()
    assert estimate_memory(source, resolutions=[64], progress=tell) == first
    assert told == []  # so nothing was traced
    more = estimate_memory(source, resolutions=[64, 128], progress=tell)
    assert more.sizes[0] == first.sizes[0] and "unet at 64x64" not in told
    for options in ({"batch": 2}, {"precision": "fp32"}):
        told.clear()
        given: dict[str, Any] = {"resolutions": [64], **options}
        assert estimate_memory(source, progress=tell, **given) != first
        assert "trace unet" in told
    assert main(["cache"]) == 0
    assert "memory of a network" in capsys.readouterr().out
    for path in (tmp_path / "plans").iterdir():  # damaged, and not to be replaced
        path.write_text('{"64x64": -1}')
    assert estimate_memory(source, resolutions=[64]) == first
    monkeypatch.setenv("SDENGINE_CACHE", "/proc/nowhere")
    assert estimate_memory(source, resolutions=[64]) == first


def test_bad_arguments() -> None:
    source = source_of(TINY_SD15)
    with pytest.raises(ConfigError, match="multiples of 64"):
        estimate_memory(source, resolutions=[100])
    with pytest.raises(ConfigError, match="precision"):
        estimate_memory(source, precision="int8")
    with pytest.raises(ConfigError, match="batch"):
        estimate_memory(source, batch=0)
    with pytest.raises(ConfigError, match="arch: 'sd9'"):
        published_architecture("sd9")
    with pytest.raises(CheckpointError, match="has no weights"):
        source.load("unet")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GiB", 8 << 30), ("24 GB", 24 * 10**9), ("500mb", 5 * 10**8), ("1.5gi", 3 << 29), ("7", 7)],
)
def test_sizes_of_memory(text: str, expected: int) -> None:
    assert parse_bytes("--memory", text) == expected


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "8 bananas", "1e9", "9" * 20, "GiB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_bytes("--memory", text)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "demo", "--resolutions", "128,256", "--memory"]
    assert main([*arguments, "1GiB"]) == 0
    table = capsys.readouterr()
    assert table.out.count("yes") == 2 and "Not measured on a GPU" in table.err
    assert main([*arguments, "20MB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory_bytes"] == 20 * 10**6
    assert [size["width"] for size in found["sizes"]] == [128, 256]
    assert math.isclose(sum(found["weight_bytes"].values()), 22e6, rel_tol=0.5)
    assert main([*arguments, "20MB"]) == 0
    assert "no" in capsys.readouterr().out
    assert main(["plan", "nothing"]) == 2
    assert "expected a bundle, a checkpoint, or one of sd15" in capsys.readouterr().err
