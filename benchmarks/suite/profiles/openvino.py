"""Profile of the openvino backend: the times of layers that OpenVINO itself measures."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sdengine.backends.openvino import OpenVinoModule, OpenVinoSession
from sdengine.benchmarks.native_networks import make_inputs
from sdengine.benchmarks.suite.profiles.operations import Operation, Timed, first_level, level_of
from sdengine.errors import DeviceError

_KINDS = {
    "Convolution": "conv",
    "FullyConnected": "linear",
    "MatMul": "linear",
    "MVN": "norm",
    "Eltwise": "add",
    "Reorder": "copy",
    "Transpose": "copy",
    "Concatenation": "copy",
    "Split": "copy",
    "Subgraph": "fused",
}
_VALUES = {"f32": "fp32", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_BITS = {"f32": 32, "i32": 32, "bf16": 16, "f16": 16, "i64": 64, "i8": 8, "u8": 8}


def load(session: OpenVinoSession, network: str, shapes: Mapping[str, tuple[int, ...]]) -> Timed:
    """Load a network of a session of the openvino backend, and run it once to know its layers.

    Raises:
        DeviceError: a layer that ran is not in OpenVINO's runtime model.
    """
    model, compiled = session.compile(network, shapes, timed=True)
    module = OpenVinoModule(network, compiled)
    inputs = make_inputs(module)
    layers = {node.get_friendly_name(): node for node in compiled.get_runtime_model().get_ops()}
    ran = [*module.run_timed(inputs)]
    if lost := [name for name in ran if name not in layers]:
        raise DeviceError(f"{network}: OpenVINO's runtime model does not have {lost[0]!r}.")
    operations = _operations(network, [layers[name] for name in ran], _attention_flops(model))

    def run() -> tuple[float, list[float]]:
        started = time.perf_counter()
        seconds = module.run_timed(inputs)
        whole = time.perf_counter() - started
        return whole, [seconds.get(name, 0.0) for name in ran]

    return Timed(operations, run, module.close)


def _attention_flops(model: Any) -> dict[str, int]:
    """Return those of each attention of the model: its layers' shapes do not tell heads apart."""
    found = {}
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            keys = tuple(node.get_input_shape(1))[-2]
            found[node.get_friendly_name()] = 4 * math.prod(node.get_input_shape(0)) * keys
    return found


def _operations(
    network: str, layers: Sequence[Any], attention: Mapping[str, int]
) -> list[Operation]:
    found, level = [], first_level(network)
    for node in layers:
        told = {key: str(value.value) for key, value in node.get_rt_info().items()}
        name, kind = node.get_friendly_name(), told["layerType"]
        made_of = told["originalLayersNames"].split(",")
        level = level_of(" ".join([name, *made_of]), level)
        flops = sum(attention.get(one, 0) for one in made_of)
        if flops:
            kind = "attention"
        elif kind in ("Convolution", "FullyConnected", "MatMul"):
            flops = _product_flops(node, kind)
        found.append(
            Operation(
                name=name,
                kind=_KINDS.get(kind, kind.lower()),
                level=level,
                flops=flops,
                products=flops,
                values=_VALUES.get(told["runtimePrecision"], "") if flops else "",
                bytes_read=sum(_bytes(one.get_source_output()) for one in node.inputs()),
                bytes_written=sum(map(_bytes, node.outputs())),
            )
        )
    return found


def _product_flops(node: Any, kind: str) -> int:
    x, weight, out = (
        tuple(int(side) for side in shape)
        for shape in (node.get_input_shape(0), node.get_input_shape(1), node.get_output_shape(0))
    )
    if kind == "Convolution":  # [O,I,k,k], or [groups,O,I,k,k]
        return 2 * math.prod(out) * math.prod(weight) // out[1]
    return 2 * math.prod(out) * x[-1]


def _bytes(output: Any) -> int:
    precisions = str(output.get_node().get_rt_info()["outputPrecisions"].value).split(",")
    precision = precisions[min(output.get_index(), len(precisions) - 1)]
    return math.prod(map(int, output.get_shape())) * _BITS.get(precision, 32) // 8
