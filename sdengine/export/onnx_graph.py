"""Trace a module to an ONNX graph whose weights are named as in the checkpoint.

The graph is traced without its weights, which are then attached as external data: so a network of
any size needs no copy of its weights in memory, and later tools can find each weight by name.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch

from sdengine.backends.base import TensorSpec
from sdengine.errors import ExportError
from sdengine.export.networks import NetworkContract

OPSET = 20
_WRAPPER_PREFIX = "module."
# Tensors start at multiples of this, so that a runtime can map them from the file.
_ALIGNMENT = 64


def trace(contract: NetworkContract, path: Path) -> onnx.ModelProto:
    """Return the graph with its parameters as inputs behind the contract's inputs.

    Args:
        contract: the network.
        path: where the graph may be written.

    Raises:
        ExportError: the module does something that ONNX has no operator for.
    """
    example = contract.example(2, 2 * contract.multiple, 3 * contract.multiple, seed=0)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # Tracing warns about every shape that becomes a constant; those are meant to.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                contract.module,
                example,
                path,
                input_names=[spec.name for spec in contract.inputs],
                output_names=[spec.name for spec in contract.outputs],
                dynamic_axes={
                    spec.name: _symbols(spec) for spec in (*contract.inputs, *contract.outputs)
                },
                opset_version=OPSET,
                # The older exporter is 15 times faster here, and the graphs compile to the same.
                dynamo=False,
                export_params=False,
                do_constant_folding=False,
            )
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        raise ExportError(f"{contract.name}: cannot be exported to ONNX: {error}") from error
    return onnx.load(path)


def attach_weights(model: onnx.ModelProto, contract: NetworkContract, data_path: Path) -> None:
    """Turn parameter inputs into initializers whose data lie in one file beside the model.

    Args:
        model: a traced graph; changed in place.
        contract: what it was traced from.
        data_path: the file to write, fp32 little-endian.
    """
    state = contract.module.state_dict()
    wanted = {spec.name for spec in contract.inputs}
    used = {name for node in model.graph.node for name in node.input}
    parameters = [value.name for value in model.graph.input if value.name not in wanted]
    unknown = [name for name in parameters if name in used and name not in state]
    if unknown:
        raise ExportError(f"{contract.name}: the graph has inputs of no origin: {unknown[:3]}.")
    offset = 0
    names = {}
    with data_path.open("wb") as file:
        for name in parameters:
            if name not in used:
                continue
            tensor = state[name].detach().float().contiguous()
            names[name] = name.removeprefix(_WRAPPER_PREFIX)
            content = tensor.numpy().astype("<f4", copy=False)
            file.write(b"\0" * (offset - file.tell()))
            content.tofile(file)
            model.graph.initializer.append(
                _external(names[name], tensor.shape, data_path.name, offset, content.nbytes)
            )
            offset = -(-(offset + content.nbytes) // _ALIGNMENT) * _ALIGNMENT
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in names:
                node.input[index] = names[name]
    kept = [value for value in model.graph.input if value.name in wanted]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def onnx_symbol(size: int | str) -> int | str:
    """Return a dimension as ONNX names it, where a symbol is an identifier."""
    return size.replace("/", "_div_") if isinstance(size, str) else size


def _symbols(spec: TensorSpec) -> dict[int, str]:
    return {
        axis: str(onnx_symbol(size))
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }


def _external(
    name: str, shape: torch.Size, location: str, offset: int, length: int
) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=list(shape))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
