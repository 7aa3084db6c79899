"""Single operations on the native target, and the same in torch and in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.layout import lay_out
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.methods import choose_methods
from sdengine.backends.native.packing import pack, plan_packing
from sdengine.backends.native.prepare import BF16_ISA, DTYPES
from sdengine.backends.native.report import products_of
from sdengine.backends.native.step import Step

Array = NDArray[Any]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Operation:
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


def conv(channels: int, columns: int, side: int) -> Operation:
    """Return a 3x3 convolution of two square maps."""
    step = Step(
        kind="conv", name="conv", inputs={"x": "x"}, output="out", weights={"weight": "weight"},
        channels=columns, kernel=3, padding=1,
    )  # fmt: skip
    flops = 2 * 2 * side * side * channels * columns * 9
    shapes, weights = {"x": (2, channels, side, side)}, {"weight": (columns, channels, 3, 3)}
    return Operation(f"conv3x3 {channels}->{columns} @{side}", step, shapes, weights, flops)


def linear(rows: int, inner: int, columns: int) -> Operation:
    """Return a product of two rows of tokens with a matrix."""
    step = Step(
        kind="linear", name="linear", inputs={"x": "x"}, output="out",
        weights={"weight": "weight"}, channels=columns,
    )  # fmt: skip
    flops = 2 * rows * inner * columns
    shapes, weights = {"x": (2, inner, 1, rows // 2)}, {"weight": (columns, inner)}
    return Operation(f"linear {rows}x{inner}x{columns}", step, shapes, weights, flops)


def attention(queries: int, keys: int, dim: int) -> Operation:
    """Return attention of eight heads over two rows of tokens."""
    step = Step(
        kind="attention", name="attention", inputs={r: r for r in "qkv"}, output="out",
        heads=8, scale=dim**-0.5,
    )  # fmt: skip
    width = 8 * dim
    shapes = {"q": (2, width, 1, queries), "k": (2, width, 1, keys), "v": (2, width, 1, keys)}
    return Operation(
        f"attention {queries}x{keys}x{dim}", step, shapes, {}, 4 * 16 * queries * keys * dim
    )


def group_norm(channels: int, side: int) -> Operation:
    """Return GroupNorm with SiLU of two square maps."""
    step = Step(
        kind="group_norm", name="group_norm", inputs={"x": "x"}, output="out", activation="silu",
        groups=32, weights={"weight": "weight", "bias": "bias"},
    )  # fmt: skip
    shapes = {"x": (2, channels, side, side)}
    weights = {"weight": (channels,), "bias": (channels,)}
    return Operation(f"GroupNorm+SiLU {channels} @{side}", step, shapes, weights, 0)


def layer_norm(rows: int, channels: int) -> Operation:
    """Return LayerNorm of two rows of tokens."""
    step = Step(
        kind="layer_norm", name="layer_norm", inputs={"x": "x"}, output="out",
        weights={"weight": "weight", "bias": "bias"},
    )  # fmt: skip
    shapes = {"x": (2, channels, 1, rows // 2)}
    weights = {"weight": (channels,), "bias": (channels,)}
    return Operation(f"LayerNorm {rows}x{channels}", step, shapes, weights, 0)


@dataclass(frozen=True)
class NativeRun:
    """An operation on the native target.

    Args:
        run: computes it.
        result: gives what was computed, [n,c,h,w].
        values: what is multiplied, as `peak_rate` names it; "" where products do not matter.
        flops: multiplications and additions of the products that are computed.
    """

    run: Run
    result: Callable[[], Array]
    values: str
    flops: float


def native_run(
    case: Operation,
    maps: Mapping[str, Array],
    weights: Mapping[str, Array],
    precision: str,
    threads: int,
) -> NativeRun:
    """Put the operation together and run it once."""
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
    int16 = chosen_isa() != BF16_ISA
    chosen = choose_methods(graph, sizes, precision, int16=int16)
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
    return NativeRun(
        lambda: network.run_one(index),
        lambda: network.view(record).reshape(shape),
        *products_of(program.records[index]),
    )


def torch_run(
    case: Operation, maps: Mapping[str, Array], weights: Mapping[str, Array], dtype: Any
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
    if step.kind == "layer_norm":
        tokens, parameters = held["x"][:, :, 0].transpose(1, 2), (held["weight"], held["bias"])
        return lambda: F.layer_norm(tokens, tokens.shape[-1:], *parameters, step.epsilon).transpose(
            1, 2
        )[:, :, None]
    if step.kind == "group_norm":
        x = held["x"].to(memory_format=torch.channels_last)
        return lambda: F.silu(F.group_norm(x, 32, held["weight"], held["bias"], step.epsilon))
    q, k, v = (
        held[r][:, :, 0].reshape(2, step.heads, -1, held[r].shape[3]).transpose(2, 3).contiguous()
        for r in "qkv"
    )
    return lambda: F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(case.shapes["q"])


def openvino_run(
    case: Operation, maps: Mapping[str, Array], weights: Mapping[str, Array], hint: str
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


def draw(case: Operation) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return seeded normal maps, and weights that keep their size."""
    rng = np.random.default_rng(0)
    maps = {
        name: rng.standard_normal(shape, dtype=np.float32) for name, shape in case.shapes.items()
    }
    weights = {
        role: rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))
        for role, shape in case.weights.items()
    }
    return maps, weights
