"""Exported network: one module as ONNX, and the proof that the file computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from sdengine.bundle.tensors import TensorSpec
from sdengine.export.comparison import compare_with_module
from sdengine.export.trace import placeholders, trace
from sdengine.export.weights import attach_weights, written_weights
from sdengine.models.contracts import make_contract
from sdengine.models.network_contract import NetworkContract


@dataclass(frozen=True)
class ExportedNetwork:
    """A network on disk as ONNX.

    Args:
        name: the network's name in a bundle.
        onnx_path: the graph, its weights beside it in `<name>.onnx.data`; None for a target that
            runs the module itself.
        inputs, outputs: their dimensions are those of the graph.
        module: what it was exported from; None where it came out of the cache.
        max_error: largest difference between the two, relative to the largest output, over
            several batches and sizes; None when not compared.
        reused: it was exported earlier.
    """

    name: str
    onnx_path: Path | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    module: nn.Module | None
    max_error: float | None
    reused: bool = False


def export_network(
    name: str,
    module: nn.Module,
    out_dir: Path,
    *,
    downscale: int = 8,
    controlnet: bool = True,
    num_time_ids: int = 6,
    precision: str = "fp32",
    check: bool = True,
) -> ExportedNetwork:
    """Write `<name>.onnx` and `<name>.onnx.data` and compare them with the module.

    Args:
        name, module, downscale, controlnet, num_time_ids, precision: as for `make_contract`; the
            module in any float dtype on the CPU.
        out_dir: an existing folder.
        check: run both in onnxruntime and torch and compare.

    Raises:
        ConfigError: an argument is invalid.
        ExportError: the module cannot be exported, or the file computes something else.
    """
    contract = make_contract(
        name,
        module,
        downscale=downscale,
        controlnet=controlnet,
        num_time_ids=num_time_ids,
        precision=precision,
    )
    return export_contract(contract, module, out_dir, check=check)


def export_contract(
    contract: NetworkContract, module: nn.Module, out_dir: Path, *, check: bool = True
) -> ExportedNetwork:
    """Do what `export_network` does, for a contract that was made already."""
    path = out_dir / f"{contract.name}.onnx"
    data_path = data_file(path)
    with placeholders(contract.module, contract.dtype) as state:
        model = trace(contract, path)
        attach_weights(model, state, contract, data_path)
    onnx.save(model, path)
    error = None
    if check:
        unit = contract.multiple
        # Neither of them the size that was traced, nor one where a norm has hardly a number.
        sizes = ((1, 3 * unit, 2 * unit), (3, 2 * unit, unit))
        with written_weights(model, contract, data_path):
            error = compare_with_module(path, model, contract, sizes)
    return ExportedNetwork(contract.name, path, contract.inputs, contract.outputs, module, error)


def data_file(path: Path) -> Path:
    """Return where the weights of a network's graph lie."""
    return path.with_name(f"{path.name}.data")
