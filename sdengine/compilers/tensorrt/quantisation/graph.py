"""Quantised graph: layers read what QuantizeLinear and DequantizeLinear leave of their inputs.

TensorRT takes such a layer's product in eight bits, as the graph's types are the engine's. Any
runtime that knows the two operators computes with the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from sdengine.compilers.tensorrt.quantisation.calibration import Calibration
from sdengine.compilers.tensorrt.quantisation.formats import NumberFormat, per_row
from sdengine.compilers.tensorrt.quantisation.layers import LayerScales, smoothed
from sdengine.errors import EngineBuildError
from sdengine.export.network import data_file

Array = NDArray[Any]
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_ALIGNMENT = 64


@contextmanager
def written_beside(
    path: Path, model: onnx.ModelProto, calibration: Calibration | None
) -> Iterator[Path]:
    """Give a graph as a file beside the weights that it reads, for as long as the block lasts.

    Args:
        path: of the network that the graph was made of, whose weights it shares.
        model: lowered to opset 21 or later where it is calibrated; left as it is.
        calibration: of the layers that compute in eight bits; None for none. The weights must be
            fp16 then.

    Raises:
        EngineBuildError: a layer of the calibration is not in the graph.
    """
    place = path.with_name(f".{os.getpid()}.fused.{path.name}")
    try:
        if calibration is None:
            onnx.save(model, place)
        else:
            _save_quantised(model, data_file(path), calibration, place)
        yield place
    finally:
        place.unlink(missing_ok=True)
        data_file(place).unlink(missing_ok=True)


def _save_quantised(
    model: onnx.ModelProto, weights: Path, calibration: Calibration, place: Path
) -> None:
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    with data_file(place).open("wb") as file:
        _Rewriting(quantised.graph, weights, calibration, file).run()
    onnx.save(quantised, place)


class _Rewriting:
    """The pass over one graph, which is changed in place."""

    def __init__(
        self, graph: onnx.GraphProto, weights: Path, calibration: Calibration, file: IO[bytes]
    ) -> None:
        self._graph = graph
        self._format: NumberFormat = calibration.number_format
        self._layers: Mapping[str, LayerScales] = calibration.layers
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._data = np.memmap(weights, dtype=np.uint8, mode="r")
        self._file = file
        self._weight_nodes: list[onnx.NodeProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._read: dict[tuple[str, float, bytes], str] = {}

    def run(self) -> None:
        """Rewrite every layer of the calibration."""
        self._add_tensor("quantised.zero", self._format.onnx_type, (), b"\0")
        transposed = {
            node.output[0]: node.input[0]
            for node in self._graph.node
            if node.op_type == "Transpose" and node.input[0] in self._stored
        }
        quantised: dict[str, str] = {}  # by the name of the weight, what is read instead
        for node in self._graph.node:
            name = node.input[1] if node.op_type in _PRODUCTS else ""
            weight = transposed.get(name, name)
            if weight in self._layers:
                rank = len(self._stored[weight].dims)
                node.input[0] = self._reading(node.input[0], self._layers[weight], rank)
                if weight not in quantised:
                    quantised[weight] = self._add_weight(weight, self._layers[weight].smoothing)
            self._nodes.append(node)
        left = self._layers.keys() - quantised
        if left:
            raise EngineBuildError(f"unet: no layer of the graph reads {min(left)!r}.")
        self._replace(quantised)

    def _replace(self, quantised: Mapping[str, str]) -> None:
        """Let all nodes read the quantised weights, and leave out the others."""
        for node in self._nodes:
            for index, name in enumerate(node.input):
                node.input[index] = quantised.get(name, name)
        kept = [tensor for tensor in self._graph.initializer if tensor.name not in quantised]
        # Copies, because deleting what a graph holds empties it.
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
        del self._graph.initializer[:], self._graph.node[:]
        self._graph.initializer.extend(kept)
        self._graph.node.extend([*self._weight_nodes, *nodes])

    def _reading(self, x: str, scales: LayerScales, rank: int) -> str:
        """Return what is left of a value once it was quantised; the same readers share it."""
        factors = scales.smoothing
        key = (x, scales.scale, b"" if factors is None else factors.tobytes())
        if key in self._read:
            return self._read[key]
        name = f"{x}.read{len(self._read)}"
        if factors is not None:
            shape = (-1, 1, 1) if rank == 4 else (-1,)  # of a convolution: [in,1,1]
            self._add_float(f"{name}.smoothing", factors.reshape(shape))
            self._nodes.append(_node("Mul", [x, f"{name}.smoothing"], f"{name}.smoothed"))
            x = f"{name}.smoothed"
        self._add_float(f"{name}.scale", np.float32(scales.scale))
        stored, scale = f"{name}.stored", f"{name}.scale"
        self._nodes.append(_node("QuantizeLinear", [x, scale, "quantised.zero"], stored))
        self._nodes.append(_node("DequantizeLinear", [stored, scale], name))
        self._read[key] = name
        return name

    def _add_weight(self, weight: str, factors: Array | None) -> str:
        """Write a weight in eight bits; return what reads it."""
        name = f"{weight}.read"
        values = np.float32(self._values(self._stored[weight]))
        if factors is not None:
            values = smoothed(values, factors)
        scale = self._format.weight_scale(values)
        bits = self._format.stored(values, per_row(scale, values))
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.write(b"\0" * (offset - self._file.tell()))
        bits.tofile(self._file)
        tensor = self._graph.initializer.add(
            name=f"{name}.stored", data_type=self._format.onnx_type, dims=values.shape
        )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        location = Path(self._file.name).name
        for entry, value in (("location", location), ("offset", offset), ("length", bits.nbytes)):
            tensor.external_data.add(key=entry, value=str(value))
        self._add_float(f"{name}.scale", scale)
        inputs = [f"{name}.stored", f"{name}.scale"]
        self._weight_nodes.append(_node("DequantizeLinear", inputs, name, axis=0))
        return name

    def _values(self, tensor: onnx.TensorProto) -> Array:
        place = {entry.key: entry.value for entry in tensor.external_data}
        first = int(place["offset"])
        data = self._data[first : first + int(place["length"])]
        return data.view(np.float16).reshape(tuple(tensor.dims))

    def _add_float(self, name: str, values: Array) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.float16(values), name))

    def _add_tensor(self, name: str, kind: int, shape: tuple[int, ...], data: bytes) -> None:
        self._graph.initializer.append(helper.make_tensor(name, kind, shape, data, raw=True))


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output, **attributes)
