"""Trace a module to an ONNX graph whose weights are named as in the checkpoint.

The graph is traced without its weights, which are then attached as external data: so a network of
any size needs no copy of its weights in memory, and later tools can find each weight by name. While
tracing, zeros stand for the weights; while comparing, views of the written file do.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

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


@contextmanager
def placeholders(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    """Let every weight be fp32 zeros that take no memory; give the weights that they stand for.

    The module has its own weights again after the block.
    """
    state = dict(module.state_dict())
    module.load_state_dict(
        {n: _nearly_zeros(t.shape, number) for number, (n, t) in enumerate(state.items(), 1)},
        assign=True,
    )
    try:
        yield state
    finally:
        module.load_state_dict(state, assign=True)


def _nearly_zeros(shape: torch.Size, number: int) -> torch.Tensor:
    # Pages of NumPy's zeros exist only once written to. Each has a value of its own somewhere,
    # because the exporter takes equal weights for one.
    zeros = np.zeros(shape, np.float32)
    zeros.flat[:1] = number
    return torch.from_numpy(zeros)


@contextmanager
def written_weights(model: onnx.ModelProto, module: nn.Module, data_path: Path) -> Iterator[None]:
    """Let the module compute with the weights that a graph's data file holds, mapped from it.

    Raises:
        ExportError: the file holds something else than the module.
    """
    state = dict(module.state_dict())
    shared = {n: t.float() if t.numel() < 2 else t for n, t in state.items()}
    for tensor in model.graph.initializer:
        offsets = [int(e.value) for e in tensor.external_data if e.key == "offset"]
        if not offsets:
            continue
        shape = tuple(tensor.dims)
        # Copy on write, because torch knows no read-only memory; nothing writes.
        view = np.memmap(data_path, dtype="<f4", mode="c", offset=offsets[0], shape=shape)
        name = tensor.name if tensor.name in state else _WRAPPER_PREFIX + tensor.name
        shared[name] = torch.from_numpy(view)
        wanted = state[name].float().contiguous()
        # By their bits: a NaN is to be named later, as a weight that makes no sense.
        if not torch.equal(shared[name].view(torch.int32), wanted.view(torch.int32)):
            raise ExportError(f"{data_path}: weight {tensor.name!r} was not written as it is.")
    module.load_state_dict(shared, assign=True)
    try:
        yield
    finally:
        module.load_state_dict(state, assign=True)


def attach_weights(
    model: onnx.ModelProto,
    state: Mapping[str, torch.Tensor],
    contract: NetworkContract,
    data_path: Path,
) -> None:
    """Turn parameter inputs into initializers whose data lie in one file beside the model.

    Args:
        model: a traced graph; changed in place.
        state: the weights by name, in any float dtype.
        contract: what it was traced from.
        data_path: the file to write, fp32 little-endian.
    """
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
