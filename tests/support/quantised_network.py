"""A network of four layers with fp16 weights, and calibrations of it made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from sdengine.compilers.tensorrt.quantisation.calibration import Calibration
from sdengine.compilers.tensorrt.quantisation.formats import NumberFormat
from sdengine.compilers.tensorrt.quantisation.layers import LayerScales

FP16 = onnx.TensorProto.FLOAT16
WEIGHTS = {
    "conv.weight": (32, 16, 1, 1),
    "conv.bias": (32,),
    "a.weight": (16, 32),
    "b.weight": (16, 32),
    "c.weight": (16, 32),
}


def write_network(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a convolution whose pixels three projections read, with fp16 weights in a file."""
    rng = np.random.default_rng(0)
    weights = {n: (rng.standard_normal(s) / 5).astype(np.float16) for n, s in WEIGHTS.items()}
    tensors, offset = [], 0
    with (folder / "unet.onnx.data").open("wb") as file:
        for name, values in weights.items():
            tensor = onnx.TensorProto(name=name, data_type=FP16, dims=values.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            place = {"location": "unet.onnx.data", "offset": offset, "length": values.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            file.write(values.tobytes())
            offset += values.nbytes
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["map"]),
        helper.make_node("Transpose", ["map"], ["tokens"], perm=[0, 2, 3, 1]),
    ]
    for name in ("a", "b", "c"):
        nodes.append(helper.make_node("Transpose", [f"{name}.weight"], [f"{name}.t"], perm=[1, 0]))
        nodes.append(helper.make_node("MatMul", ["tokens", f"{name}.t"], [name]))
    graph = helper.make_graph(
        nodes,
        "unet",
        [helper.make_tensor_value_info("x", FP16, [1, 16, 4, 4])],
        [
            helper.make_tensor_value_info("tokens", FP16, [1, 4, 4, 32]),
            *(helper.make_tensor_value_info(name, FP16, [1, 4, 4, 16]) for name in ("a", "b", "c")),
        ],
        tensors,
    )
    path = folder / "unet.onnx"
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), path)
    return path, weights


def calibration(number_format: NumberFormat, layers: dict[str, LayerScales]) -> Calibration:
    """Return scales of its layers, which no run found."""
    return Calibration(number_format, layers, {}, [], [])
