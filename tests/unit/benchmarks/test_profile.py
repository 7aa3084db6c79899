"""Profiles: what operations count, where they belong, records, tables and traces; nothing timed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support.tiny_bundle import make_tiny_bundle
from torch.utils.flop_counter import FlopCounterMode

from sdengine.backends.torch.eager import TorchModule
from sdengine.benchmarks.roofline import list_kernels
from sdengine.benchmarks.suite.machine_roofline import Roofline
from sdengine.benchmarks.suite.profiles import openvino as profile_openvino
from sdengine.benchmarks.suite.profiles import run as profile_run
from sdengine.benchmarks.suite.profiles import torch as profile_torch
from sdengine.benchmarks.suite.profiles.operations import (
    Operation,
    first_level,
    level_of,
    steps_of,
)
from sdengine.benchmarks.suite.profiles.run import Asked, run
from sdengine.benchmarks.suite.profiles.tables import groups, notes, slowest, summary
from sdengine.benchmarks.suite.profiles.trace import trace_of, write_trace
from sdengine.benchmarks.tiny import TINY_SD15
from sdengine.bundle.reader import open_bundle
from sdengine.bundle.tensors import TensorSpec, resolve_shapes
from sdengine.errors import ConfigError, OutputError
from sdengine.models.configs import SD15, ModelArchitecture
from sdengine.models.contracts import unet_contract
from sdengine.models.network_contract import NetworkContract, symbol_sizes
from sdengine.models.unet import UNet2DConditionModel, UNetConfig

Shapes = dict[str, tuple[int, ...]]
ROOFLINE: Roofline = {
    "flops_per_second": {"fp32": 1e9, "bf16": 2e9, "int16": 2e9, "int8": 4e9},
    "bytes_per_second": 1e9,
    "threads": 1,
}
CONV = Operation("/module/down_blocks.0/conv/Conv", "winograd", "down 0", 4000, 1000, "int16", 9, 1)
NORM = Operation("norm", "group_norm", "mid", 0, 0, "", 3000, 1000)


def test_the_longer_of_products_and_bytes_bounds() -> None:
    """1000 products at 2e9 a second are 0.5 microseconds, 4000 bytes at 1e9 are 4."""
    far = replace(CONV, bytes_read=2000)
    for one, least, by in (
        (CONV, 5e-7, "compute"),
        (NORM, 4e-6, "memory"),
        (far, 2.001e-6, "memory"),
    ):
        seconds, bound = one.least_seconds(ROOFLINE)
        assert bound == by and seconds == pytest.approx(least)


def test_a_record_counts_the_products_that_are_computed() -> None:
    conv, norm = steps_of([CONV, NORM], [1e-6, 3e-6], ROOFLINE)
    assert conv["percent_of_peak"] == pytest.approx(50)  # a quarter of the plain algorithm's
    assert (conv["percent_of_time"], norm["percent_of_time"]) == pytest.approx((25, 75))
    assert (conv["bound"], norm["bound"]) == ("compute", "memory")
    assert norm["percent_of_peak"] is None and norm["values"] == ""
    assert norm["least_ms"] == pytest.approx(4e-3)
    assert steps_of([CONV], [0.0], ROOFLINE)[0]["percent_of_peak"] is None


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("input sample", "inputs, outputs"),
        ("/module/time_embedding/linear_1/Gemm", "time embedding"),
        ("/module/down_blocks.1/resnets.0/time_emb_proj/Gemm", "time embedding"),
        ("/module/add_embedding/linear_1/Gemm", "time embedding"),
        ("/module/conv_in/Conv", "first"),
        ("/module/down_blocks.3/resnets.0/conv1/Conv", "down 3"),
        ("module.up_blocks.0.attentions.1.proj_in", "up 0"),
        ("/mid_block/attentions.0/norm", "mid"),
        ("/module/conv_norm_out/InstanceNormalization", "last"),
        ("/decoder/up_blocks.2/resnets.1/conv2/Conv", "up 2"),
        ("/conv_in/Conv_acdb_abcd_/module/down_blocks.0/resnets.0/norm1", "first"),
        ("/layers.11/mlp/fc1/MatMul", "layer 11"),
        ("/module/controlnet_down_blocks.3/Conv", "residuals"),
        ("MVN_5150", "before"),
    ],
)
def test_levels_by_name(name: str, level: str) -> None:
    assert level_of(name, "before") == level


def test_level_of_what_comes_first() -> None:
    assert first_level("unet") == "time embedding"
    assert first_level("vae_decoder") == "first"


def record_of(*steps: dict[str, Any]) -> dict[str, Any]:
    return {
        "time": "now", "bundle": "b", "backend": "native", "precision": "bf16", "network": "unet",
        "size": [64, 64], "rows": 2, "total_ms": {"median": 1.0, "p10": 1.0, "p90": 1.0, "n": 3},
        "others_percent": 0.0, "steps": list(steps), "roofline": ROOFLINE,
        "machine": {"processor": "a processor"},
    }  # fmt: skip


RECORD = record_of(*steps_of([CONV, NORM, CONV], [1e-6, 6e-6, 3e-6], ROOFLINE))


def shown(table: Any) -> str:
    console = Console(width=160, record=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_groups_add_up() -> None:
    norm, conv = groups(RECORD, "kind")  # the slowest first
    assert (norm.name, norm.count, conv.name, conv.count) == ("group_norm", 1, "winograd", 2)
    assert conv.ms == pytest.approx(4e-3) and conv.percent_of_time == pytest.approx(40)
    assert conv.could_save_ms == pytest.approx(4e-3 - 1e-3)
    # 8000 plain FLOP in 4 microseconds; 1 of the 4 would do at the peak.
    assert conv.cells() == ("0.004", "40.0", "2.0", "25.0", "0.003")
    assert norm.cells() == ("0.006", "60.0", "", "", "0.002")
    assert [one.name for one in groups(RECORD, "level")] == ["down 0", "mid"]


def test_tables_show_groups_and_the_slowest() -> None:
    assert "winograd" in shown(summary(RECORD, "kind"))
    text = shown(slowest(RECORD, 2))
    assert "down_blocks.0/conv" in text and "compute, int16" in text and "norm" in text
    assert text.count("winograd") == 1
    lines = notes(RECORD)
    assert "1.00 ms (1.00 to 1.00), median of 3" in lines[0] and "int16 2" in lines[1]


def test_a_trace_has_a_track_of_levels_and_one_of_operations(tmp_path: Path) -> None:
    write_trace(RECORD, tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace == json.loads(json.dumps(trace_of(RECORD)))
    events = trace["traceEvents"]
    named = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
    tracks: dict[str, list[Any]] = {}
    for one in events:
        if one["ph"] == "X":
            tracks.setdefault(named[one["tid"]], []).append(one)
    assert [one["name"] for one in tracks["levels"]] == ["down 0", "mid", "down 0"]
    assert [one["dur"] for one in tracks["operations"]] == pytest.approx([1, 6, 3])
    for track in tracks.values():  # without gaps
        assert [one["ts"] for one in track] == pytest.approx([0, 1, 7])
    assert tracks["operations"][0]["args"]["bound"] == "compute"
    with pytest.raises(OutputError, match=r"nowhere.*cannot be written"):
        write_trace(RECORD, tmp_path / "nowhere" / "trace.json")
    assert [one.name for one in tmp_path.iterdir()] == ["trace.json"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_run, "measure", lambda threads: {**ROOFLINE, "threads": threads})


@pytest.mark.usefixtures("machine")
def test_the_demo_model_on_the_native_backend() -> None:
    said: list[str] = []
    record = run(Asked(size=(64, 96), threads=1, calls=2, rows=2), said.append)
    steps = record["steps"]
    assert (record["schema"], record["kind"], record["backend"]) == (3, "profile", "native")
    assert record["size"] == [64, 96] and record["rows"] == 2 and record["total_ms"]["n"] == 2
    assert [one["index"] for one in steps] == [*range(len(steps))]
    assert sum(one["percent_of_time"] for one in steps) == pytest.approx(100)
    levels = {one["level"] for one in steps}
    assert {"time embedding", "down 0", "down 2", "mid", "up 0", "up 2", "last"} <= levels
    for one in steps:
        assert one["ms"] > 0 and one["bytes_read"] > 0 and one["bytes_written"] > 0, one
        assert bool(one["flops"]) == bool(one["values"]) == (one["percent_of_peak"] is not None)
        ratio = one["products"] / one["flops"] if one["flops"] else 1
        assert ratio == (1 if one["kind"] != "winograd" else pytest.approx(0.25)), one
    assert record["command"].startswith("sdengine profile demo --network unet --size 64x96")
    assert said[-1] == "call 2 of 2"
    json.dumps(record, allow_nan=False)


@pytest.mark.usefixtures("machine")
def test_flops_of_the_native_program_are_those_of_torch() -> None:
    config = open_bundle("demo").manifest.architecture.unet.config
    unet = UNetConfig.from_dict(config)
    expected = sum(one.flops for one in list_kernels(unet, 64, fused=False, rows=2))
    record = run(Asked(size=(64, 64), threads=1, calls=1), lambda _: None)
    assert sum(one["flops"] for one in record["steps"]) == expected


def unet_on(described: ModelArchitecture, size: int, device: str) -> tuple[NetworkContract, Shapes]:
    """Return a U-Net with random weights, or none on "meta", and the shapes of its inputs."""
    with torch.device(device):
        model = UNet2DConditionModel(described.unet).eval()
    contract = unet_contract(model, controlnet=False)
    return contract, resolve_shapes("unet", contract.inputs, symbol_sizes(2, size, size))


def test_operations_of_torch_at_tiny_size() -> None:
    contract, shapes = unet_on(TINY_SD15, 64, "cpu")
    inputs = tuple(TensorSpec(s.name, shapes[s.name], s.dtype) for s in contract.inputs)
    outputs = (TensorSpec("noise_pred", shapes["sample"], "float32"),)

    class Session:
        def load(self, network: str, shapes: Mapping[str, tuple[int, ...]]) -> TorchModule:
            return TorchModule(network, contract.module, inputs, outputs, torch.float32, 1)

    timed = profile_torch.load(Session(), "unet", shapes)  # type: ignore[arg-type]
    whole, seconds = timed.run()
    timed.close()
    operations = timed.operations
    assert whole > 0 and len(seconds) == len(operations) and min(seconds) > 0
    expected = sum(one.flops for one in list_kernels(TINY_SD15.unet, 64, fused=False, rows=2))
    assert sum(one.flops for one in operations) == expected
    by_name = {one.name: one for one in operations}
    conv = by_name["module.down_blocks.0.resnets.0.conv1/conv2d"]
    assert (conv.kind, conv.level, conv.values) == ("conv", "down 0", "fp32")
    weight, pixels = 16 * 16 * 9, 2 * 8 * 8
    assert conv.flops == conv.products == 2 * weight * pixels
    assert conv.bytes_read == 4 * (weight + 16 + 16 * pixels)
    assert conv.bytes_written == 4 * 16 * pixels
    views = [one for one in operations if one.kind == "view"]
    assert views and not any(one.bytes_read or one.flops for one in views)
    assert sum(one.kind == "attention" for one in operations) == 32


def test_flops_of_the_full_network() -> None:
    """1.61 TFLOP by hand, and the first convolution of the lowest level of the way up."""
    contract, shapes = unet_on(SD15, 512, "meta")
    inputs = [torch.empty(shapes[spec.name], device="meta") for spec in contract.inputs]
    clock = profile_torch._Clock("unet", listing=True)
    with torch.inference_mode(), profile_torch._paths(clock), clock:
        contract.module(*inputs)
    operations = clock.operations
    total = sum(one.flops for one in operations)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        contract.module(*inputs)
    assert total == counter.get_total_flops()
    assert total == sum(one.flops for one in list_kernels(SD15.unet, 512, fused=False, rows=2))
    assert total == pytest.approx(1.61e12, rel=0.01)
    by_name = {one.name: one.flops for one in operations}
    assert by_name["module.up_blocks.0.resnets.0.conv1/conv2d"] == 2 * 2 * 64 * 2560 * 1280 * 9


def test_layers_of_openvino_count_what_they_multiply() -> None:
    openvino = pytest.importorskip("openvino")
    ops = openvino.opset13
    x = ops.parameter([1, 8, 16, 16], np.float32, name="x")
    kernels = np.ones((24, 8, 3, 3), np.float32)
    conv = ops.convolution(x, ops.constant(kernels), [1, 1], [1, 1], [1, 1], [1, 1])
    tokens = ops.transpose(ops.reshape(conv, [1, 3, 8, 256], False), [0, 1, 3, 2])
    q, k, v = (ops.squeeze(one, [1]) for one in ops.split(tokens, 1, 3).outputs())
    heads = [ops.reshape(one, [1, 2, 256, 4], False) for one in (q, k, v)]
    mixed = ops.reshape(ops.scaled_dot_product_attention(*heads), [1, 256, 8], False)
    out = ops.matmul(mixed, ops.constant(np.ones((5, 8), np.float32)), False, True)
    model = openvino.Model([ops.result(out)], [x])
    model.inputs[0].get_tensor().set_names({"x"})
    model.outputs[0].get_tensor().set_names({"out"})

    class Session:
        def compile(self, *_: Any, timed: bool) -> tuple[Any, Any]:
            config = {"PERF_COUNT": timed, "INFERENCE_PRECISION_HINT": "f32"}
            return model, openvino.Core().compile_model(model, "CPU", config)

    timed = profile_openvino.load(Session(), "unet", {"x": (1, 8, 16, 16)})  # type: ignore[arg-type]
    whole, seconds = timed.run()
    assert whole > 0 and len(seconds) == len(timed.operations)
    flops = {one.kind: one.flops for one in timed.operations if one.flops}
    assert flops == {
        "conv": 2 * 24 * 256 * 8 * 9,
        "attention": 4 * 2 * 256 * 256 * 4,
        "linear": 2 * 256 * 8 * 5,
    }
    conv_layer = next(one for one in timed.operations if one.kind == "conv")
    assert conv_layer.values == "fp32"
    assert conv_layer.bytes_read >= 4 * (8 * 256 + kernels.size)
    assert conv_layer.bytes_written == 4 * 24 * 256


@pytest.mark.usefixtures("machine")
def test_a_bundle_of_openvino(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "tiny")
    record = run(Asked(bundle=str(bundle), threads=1, calls=1), lambda _: None)
    assert record["backend"] == "openvino" and record["steps"]
    assert record["versions"]["openvino"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "triton"}, "backend: 'triton'.*expected auto, native, openvino, torch"),
        ({"backend": "tensorrt"}, "Backends on a GPU are not profiled"),
        ({"backend": "none"}, "backend"),
        ({"precision": "fp64"}, "precision"),
        ({"calls": 0}, "calls"),
        ({"threads": 0}, "threads"),
        ({"network": "unett"}, "network: 'unett'.*text_encoder, unet, vae_decoder"),
        ({"rows": 0}, "rows: 0.*from 1 to 8"),
        ({"rows": 9}, "rows"),
        ({"size": (100, 100)}, "multiples of 32"),
        ({"size": (65536, 65536)}, "65536"),
    ],
)
def test_what_cannot_be_profiled_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(Asked(**changes), lambda _: None)


def test_a_bundle_for_a_gpu_is_refused(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "tiny", target="tensorrt-rtx")
    with pytest.raises(ConfigError, match="of target native, openvino, torch, not tensorrt-rtx"):
        run(Asked(bundle=str(bundle)), lambda _: None)
