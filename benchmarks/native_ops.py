"""Time single operations of the native target against oneDNN (through torch) and OpenVINO.

    python benchmarks/native_ops.py --record benchmarks/results/native-ops.jsonl

The shapes are those of Stable Diffusion 1.5's U-Net at 512 pixels, two rows. All sides compute in
bf16 unless named otherwise; results are compared with fp64 before anything is timed, and rounds of
all sides alternate.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.native.graph import Graph, Port, Step
from sdengine.backends.native.isa import chosen_isa
from sdengine.backends.native.loading import BF16_ISA, DTYPES
from sdengine.backends.native.packing import choose_methods, pack, plan_packing
from sdengine.backends.native.program import lay_out
from sdengine.backends.native.shapes import map_sizes
from sdengine.benchmarks.measures import OtherLoad
from sdengine.benchmarks.records import append_record, machine, software

SCHEMA = 1
Array = NDArray[Any]
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One operation.

    Args:
        name: what tables call it.
        step: what the native target computes, reading maps by their roles.
        shapes: [n,c,h,w] of each map that it reads.
        weights: shape by role.
        flops: multiplications and additions of the plain algorithm.
    """

    name: str
    step: Step
    shapes: Mapping[str, tuple[int, int, int, int]]
    weights: Mapping[str, tuple[int, ...]]
    flops: int


def cases() -> list[Case]:
    """Return the operations, the heaviest kinds first."""
    found = []
    for channels, columns, side in (
        (320, 320, 64), (640, 640, 32), (960, 640, 32), (1280, 1280, 16), (2560, 1280, 16),
        (1280, 1280, 8),
    ):  # fmt: skip
        found.append(_conv(channels, columns, side))
    for queries, keys, dim in ((4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40)):
        found.append(_attention(queries, keys, dim))
    for rows, inner, columns in ((8192, 320, 320), (2048, 640, 5120), (512, 5120, 1280)):
        found.append(_linear(rows, inner, columns))
    found.append(_norm("group_norm", 320, 64))
    return found


def _conv(channels: int, columns: int, side: int) -> Case:
    step = Step(
        kind="conv", name="conv", inputs={"x": "x"}, output="out", weights={"weight": "weight"},
        channels=columns, kernel=3, pad=1,
    )  # fmt: skip
    flops = 2 * 2 * side * side * channels * columns * 9
    shapes, weights = {"x": (2, channels, side, side)}, {"weight": (columns, channels, 3, 3)}
    return Case(f"conv3x3 {channels}->{columns} @{side}", step, shapes, weights, flops)


def _linear(rows: int, inner: int, columns: int) -> Case:
    step = Step(
        kind="linear", name="linear", inputs={"x": "x"}, output="out",
        weights={"weight": "weight"}, channels=columns,
    )  # fmt: skip
    flops = 2 * rows * inner * columns
    shapes, weights = {"x": (2, inner, 1, rows // 2)}, {"weight": (columns, inner)}
    return Case(f"linear {rows}x{inner}x{columns}", step, shapes, weights, flops)


def _attention(queries: int, keys: int, dim: int) -> Case:
    step = Step(
        kind="attention", name="attention", inputs={r: r for r in "qkv"}, output="out",
        heads=8, scale=dim**-0.5,
    )  # fmt: skip
    width = 8 * dim
    shapes = {"q": (2, width, 1, queries), "k": (2, width, 1, keys), "v": (2, width, 1, keys)}
    return Case(
        f"attention {queries}x{keys}x{dim}", step, shapes, {}, 4 * 16 * queries * keys * dim
    )


def _norm(kind: Any, channels: int, side: int) -> Case:
    step = Step(
        kind=kind, name=kind, inputs={"x": "x"}, output="out", activation="silu", groups=32,
        weights={"weight": "weight", "bias": "bias"},
    )  # fmt: skip
    shapes = {"x": (2, channels, side, side)}
    weights = {"weight": (channels,), "bias": (channels,)}
    return Case(f"GroupNorm+SiLU {channels} @{side}", step, shapes, weights, 0)


def native_run(
    case: Case,
    maps: Mapping[str, Array],
    weights: Mapping[str, Array],
    precision: str,
    threads: int,
) -> tuple[Run, Callable[[], Array]]:
    """Return what runs the operation, and what gives its result [n,c,h,w]."""
    ports = {
        name: Port(name=name, value=name, rank=4, layout="image", dtype="float32", channels=s[1])
        for name, s in case.shapes.items()
    }
    channels = case.step.channels or next(iter(case.shapes.values()))[1]
    out = Port(name="out", value="out", rank=4, layout="image", dtype="float32", channels=channels)
    graph = Graph(
        version=1, network=case.name, inputs=tuple(ports.values()), outputs=(out,),
        steps=(case.step,),
    )  # fmt: skip
    sizes = map_sizes(graph, case.shapes)
    whole = chosen_isa() != BF16_ISA
    chosen = choose_methods(graph, sizes, precision, whole_numbers=whole)
    if precision == "int8":  # which a network's own inputs never are
        eight = [s.model_copy(update={"weight_kind": "int8"}) for s in chosen.steps]
        chosen = chosen.model_copy(update={"steps": tuple(eight)})
    packed_graph, packing = plan_packing(chosen, sizes, weights)
    program = lay_out(packed_graph, case.shapes, DTYPES[precision])
    network = _native.Network(program.records, dict(pack(packing, weights)), threads, chosen_isa())
    for name, one in program.inputs.items():
        network.view(one)[...] = maps[name]
    network.run()
    (index,) = [i for i, record in enumerate(program.records) if record["kind"] != "copy"]
    record, shape = program.outputs["out"]
    return lambda: network.run_one(index), lambda: network.view(record).reshape(shape)


def torch_run(
    case: Case, maps: Mapping[str, Array], weights: Mapping[str, Array], dtype: Any
) -> Run:
    """Return what runs the operation in torch, on oneDNN where torch uses it; gives [n,c,h,w]."""
    held = {name: torch.from_numpy(v).to(dtype) for name, v in {**maps, **weights}.items()}
    step = case.step
    if step.kind == "conv":
        x = held["x"].to(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, held["weight"], padding=1)
    if step.kind == "linear":
        tokens = held["x"][:, :, 0].transpose(1, 2).contiguous()
        return lambda: F.linear(tokens, held["weight"]).transpose(1, 2)[:, :, None]
    if step.kind == "group_norm":
        x = held["x"].to(memory_format=torch.channels_last)
        return lambda: F.silu(F.group_norm(x, 32, held["weight"], held["bias"], step.epsilon))
    q, k, v = (
        held[r][:, :, 0].reshape(2, step.heads, -1, held[r].shape[3]).transpose(2, 3).contiguous()
        for r in "qkv"
    )
    return lambda: F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(case.shapes["q"])


def openvino_run(
    case: Case, maps: Mapping[str, Array], weights: Mapping[str, Array], hint: str
) -> Run:
    """Return what runs the operation in OpenVINO; gives [n,c,h,w]."""
    import openvino
    import openvino.opset13 as ops

    parameters = {name: ops.parameter(list(s), np.float32) for name, s in case.shapes.items()}
    step = case.step
    if step.kind == "conv":
        node = ops.convolution(
            parameters["x"], ops.constant(weights["weight"]), [1, 1], [1, 1], [1, 1], [1, 1]
        )
    elif step.kind == "linear":
        tokens = ops.squeeze(ops.transpose(parameters["x"], [0, 2, 3, 1]), [1])
        product = ops.matmul(tokens, ops.constant(weights["weight"]), False, True)
        node = ops.unsqueeze(ops.transpose(product, [0, 2, 1]), [2])
    elif step.kind == "group_norm":
        scale, shift = (ops.constant(weights[role]) for role in ("weight", "bias"))
        node = ops.swish(ops.group_normalization(parameters["x"], scale, shift, 32, step.epsilon))
    else:
        dim = case.shapes["q"][1] // step.heads
        q, k, v = (
            ops.transpose(ops.reshape(parameters[r], [2, step.heads, dim, -1], False), [0, 1, 3, 2])
            for r in "qkv"
        )
        mixed = ops.scaled_dot_product_attention(q, k, v)
        node = ops.reshape(ops.transpose(mixed, [0, 1, 3, 2]), list(case.shapes["q"]), False)
    model = openvino.Model([node], list(parameters.values()))
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": hint}
    config["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    for index, name in enumerate(parameters):
        request.set_input_tensor(index, openvino.Tensor(maps[name], shared_memory=True))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor(0).data

    return run


def measure(case: Case, rounds: int, threads: int) -> dict[str, Any]:
    """Return seconds and errors of every side."""
    rng = np.random.default_rng(0)
    maps = {
        name: rng.standard_normal(shape, dtype=np.float32) for name, shape in case.shapes.items()
    }
    weights = {
        role: rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        for role, shape in case.weights.items()
    }
    truth = torch_run(case, maps, weights, torch.float64)().numpy()
    runs: dict[str, Run] = {}
    found: dict[str, Array] = {}
    for precision in ("bf16", "int8") if case.step.kind == "linear" else ("bf16",):
        run, result = native_run(case, maps, weights, precision, threads)
        runs[f"native {precision}"], found[f"native {precision}"] = run, result().copy()
    for name, dtype in (("torch bf16", torch.bfloat16), ("torch fp32", torch.float32)):
        runs[name] = torch_run(case, maps, weights, dtype)
        found[name] = runs[name]().float().numpy()
    for name, hint in (("openvino bf16", "bf16"), ("openvino fp32", "f32")):
        runs[name] = openvino_run(case, maps, weights, hint)
        found[name] = runs[name]().copy()
    errors = {
        n: float(np.sqrt(np.mean((f - truth) ** 2) / np.mean(truth**2))) for n, f in found.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {"case": case.name, "flops": case.flops, "seconds": medians, "errors": errors}


def table(rows: list[dict[str, Any]], threads: int) -> str:
    """Return a Markdown table: milliseconds, and the native side's ratio to the best peer."""
    peers = ("torch bf16", "torch fp32", "openvino bf16", "openvino fp32")
    lines = [
        f"| threads: {threads}; ms | native bf16 | GFLOP/s | native int8 | "
        + " | ".join(peers)
        + " | over the best | error | torch's |",
        "|---|" + "---:|" * 10,
    ]
    for row in rows:
        seconds = row["seconds"]
        best = min(seconds[peer] for peer in peers)
        own = seconds["native bf16"]
        rate = f"{row['flops'] / own / 1e9:.0f}" if row["flops"] else ""
        eight = f"{seconds['native int8'] * 1e3:.2f}" if "native int8" in seconds else ""
        shown = " | ".join(f"{seconds[peer] * 1e3:.2f}" for peer in peers)
        errors = row["errors"]
        lines.append(
            f"| {row['case']} | {own * 1e3:.2f} | {rate} | {eight} | {shown} | {best / own:.2f}x "
            f"| {errors['native bf16']:.1e} | {errors['torch bf16']:.1e} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and print; a record is written where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", default="2", help="numbers of threads, such as 1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", type=Path, help="file of JSON lines")
    options = parser.parse_args()
    for threads in (int(text) for text in options.threads.split(",")):
        torch.set_num_threads(threads)
        load = OtherLoad()
        rows = [measure(case, options.rounds, threads) for case in cases()]
        other = load.percent()
        print(f"{chosen_isa()}; other programs took {other:.0f} % of the machine\n")
        print(table(rows, threads) + "\n", flush=True)
        if options.record:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            record = {"schema": SCHEMA, "time": now, "threads": threads, "isa": chosen_isa()}
            record |= {"other_load_percent": other, "rows": rows}
            record |= {"versions": software("openvino"), "machine": machine()}
            append_record(record, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
