"""Compiler of the native target: writes a network's graph and weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from sdengine.backends.native.graph import write_graph
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.compilers.native.importer import Imported, import_graph
from sdengine.errors import ConfigError, EngineBuildError
from sdengine.export.network import data_file
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.storage.tensor_file import Kinds, write_tensors

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork

_KINDS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
Array = NDArray[Any]


def compile_native(network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
    """Write `<name>.graph.json` and `<name>.safetensors`.

    Args:
        network: an exported network, in fp32.
        out_dir: an existing folder.
        spec: only its precision is used, which matrices and kernels are stored in; vectors stay in
            fp32. What is computed in is the run time's choice.

    Raises:
        ExportError: an operator has no step.
        EngineBuildError: a weight is not finite in this precision.
    """
    precision = spec.precision
    if precision not in TORCH_DTYPES:
        raise ConfigError.for_field("precision", precision, ", ".join(TORCH_DTYPES))
    assert network.onnx_path is not None
    model = onnx.load(str(network.onnx_path), load_external_data=False)
    imported = import_graph(model, network.inputs, network.outputs, network.name)
    graph_path = out_dir / f"{network.name}.graph.json"
    weights_path = out_dir / f"{network.name}.safetensors"
    write_graph(imported.graph, graph_path)
    stored = {t.name: t for t in model.graph.initializer}
    wanted = sorted(set(imported.graph.weight_names()))
    kinds: Kinds = {}
    for name in wanted:
        shape = tuple(stored[name].dims if name in stored else imported.constants[name].shape)
        kinds[name] = (_KINDS[precision] if len(shape) > 1 else "F32", shape)
    # Vectors first: so the numbers of four bytes are aligned, whatever comes behind.
    kinds = dict(sorted(kinds.items(), key=lambda item: (item[1][0] != "F32", item[0])))
    tensors = _tensors(network, imported, stored, kinds, precision)
    write_tensors(weights_path, kinds, tensors)
    return Compiled([graph_path.name, weights_path.name])


def _tensors(
    network: ExportedNetwork,
    imported: Imported,
    stored: dict[str, onnx.TensorProto],
    kinds: Kinds,
    precision: str,
) -> Iterator[tuple[str, Array]]:
    assert network.onnx_path is not None
    data = np.memmap(data_file(network.onnx_path), dtype=np.uint8, mode="r")
    for name, (kind, shape) in kinds.items():
        if name not in stored:
            constant = imported.constants[name]
            rounds = kind != "F32"
            yield name, _rounded(network.name, name, constant, precision) if rounds else constant
            continue
        place = {entry.key: entry.value for entry in stored[name].external_data}
        first = int(place["offset"])
        values = data[first : first + int(place["length"])].view(np.float32).reshape(shape)
        if kind != "F32":
            values = _rounded(network.name, name, values, precision)
        yield name, values


def _rounded(network: str, name: str, values: Array, precision: str) -> Array:
    rounded = torch.from_numpy(np.array(values)).to(TORCH_DTYPES[precision])
    if not torch.isfinite(rounded).all():
        raise EngineBuildError(
            f"{network}: weight {name!r} is not finite in {precision}. Build with --precision fp32."
        )
    bits: Array = rounded.view(torch.uint16).numpy()
    return bits
