"""Trace of a module: an ONNX graph whose weights are named as in the checkpoint.

The graph is traced without its weights, which are then attached as external data: so a network of
any size needs no copy of its weights in memory, and later tools can find each weight by name. While
tracing, zeros that take no memory stand for the weights.
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

from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import ExportError
from sdengine.models.network_contract import NetworkContract

OPSET = 20


def trace(contract: NetworkContract, path: Path) -> onnx.ModelProto:
    """Return the graph with its parameters as inputs behind the contract's inputs.

    Args:
        contract: the network; its module's weights are of the contract's data type.
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
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
        torch.onnx.errors.OnnxExporterError,
    ) as error:
        raise ExportError(f"{contract.name}: cannot be exported to ONNX: {error}") from error
    model = onnx.load(path)
    if contract.dtype == torch.bfloat16:
        _repair_casts(model)
    return model


@contextmanager
def placeholders(
    module: nn.Module, dtype: torch.dtype = torch.float32
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Let every weight be zeros that take no memory; give the weights that they stand for.

    The module has its own weights again after the block.
    """
    state = dict(module.state_dict())
    standing = {
        name: _nearly_zeros(tensor.shape, number, dtype)
        for number, (name, tensor) in enumerate(state.items(), 1)
    }
    module.load_state_dict(standing, assign=True)
    try:
        yield state
    finally:
        module.load_state_dict(state, assign=True)


def onnx_symbol(size: int | str) -> int | str:
    """Return a dimension as ONNX names it, where a symbol is an identifier."""
    return size.replace("/", "_div_") if isinstance(size, str) else size


def _nearly_zeros(shape: torch.Size, number: int, dtype: torch.dtype) -> torch.Tensor:
    # Pages of NumPy's zeros exist only once written to. Each has a value of its own somewhere,
    # because the exporter takes equal weights for one.
    bits = np.zeros(shape, np.int32 if dtype == torch.float32 else np.int16)
    bits.flat[:1] = number
    return torch.from_numpy(bits).view(dtype)


def _repair_casts(model: onnx.ModelProto) -> None:
    """Undo that the exporter writes torch's number of bf16, which in ONNX means complex128."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == onnx.TensorProto.COMPLEX128:
                attribute.i = onnx.TensorProto.BFLOAT16


def _symbols(spec: TensorSpec) -> dict[int, str]:
    return {
        axis: str(onnx_symbol(size))
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }
