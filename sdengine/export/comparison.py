"""Comparison of an exported graph with the module that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from sdengine.errors import ExportError
from sdengine.export.fp32_rendition import render_in_fp32
from sdengine.models.network_contract import NetworkContract

# Largest accepted error, relative to the largest output. In fp32, rounding in another order gives
# about 1e-6. Of fp16 graphs, onnxruntime's CPU computes most operators in fp32 and rounds what lies
# between the others to 11 bits; bf16 graphs are compared in fp32 (see `compare_with_module`), where
# only their constants are rounded, to 8 bits.
MAX_ERROR: Mapping[torch.dtype, float] = {
    torch.float32: 2e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 2e-3,
}


def compare_with_module(
    path: Path,
    model: onnx.ModelProto,
    contract: NetworkContract,
    sizes: Sequence[tuple[int, int, int]],
) -> float:
    """Return the largest relative difference between an ONNX file and its module in fp32.

    The file is run by onnxruntime on the CPU, as it is; a graph of bf16, which has no operators
    there, as fp32 with the numbers of its bf16 weights.

    Args:
        path: the file, its weights beside it.
        model: its content.
        contract: its network; the module must hold the file's weights, see `written_weights`.
        sizes: batch, height and width in pixels of each run.

    Raises:
        ExportError: an output differs by more than MAX_ERROR or is not finite, or values leave the
            range of fp16 on the way, which onnxruntime would not show.
    """
    if contract.dtype != torch.bfloat16:
        return _largest_error(path, contract, sizes)
    rendition = path.with_name(f"{path.stem}.fp32.onnx")
    try:
        onnx.save(render_in_fp32(model), rendition)
        return _largest_error(rendition, contract, sizes)
    finally:
        rendition.unlink(missing_ok=True)


def _largest_error(
    path: Path, contract: NetworkContract, sizes: Sequence[tuple[int, int, int]]
) -> float:
    session = open_session(path, contract.name)
    worst = 0.0
    for seed, size in enumerate(sizes, 1):
        inputs = contract.example(*size, seed=seed)
        exact = [x.float() if x.is_floating_point() else x for x in inputs]
        with torch.no_grad(), _watched_range(contract):
            try:
                expected = contract.module(*exact)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise ExportError(
                    f"{contract.name}: torch cannot run it at {size}: {error}"
                ) from error
        fed = exact if contract.dtype == torch.bfloat16 else inputs
        named = {s.name: x.numpy() for s, x in zip(contract.inputs, fed, strict=True)}
        try:
            found = session.run([spec.name for spec in contract.outputs], named)
        except Exception as error:  # onnxruntime has no public base class of its errors
            raise ExportError(f"{contract.name}: onnxruntime cannot run {path}: {error}") from error
        wanted = (expected,) if isinstance(expected, torch.Tensor) else expected
        for spec, ours, theirs in zip(contract.outputs, found, wanted, strict=True):
            worst = max(worst, _relative_error(contract, spec.name, ours, theirs.numpy()))
    return worst


@contextmanager
def _watched_range(contract: NetworkContract) -> Iterator[None]:
    """Refuse results of the module's layers that the contract's data type cannot hold."""
    if contract.dtype != torch.float16:
        yield
        return
    limit = torch.finfo(contract.dtype).max
    found: dict[str, float] = {}

    def watch(name: str, result: object) -> None:
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            largest = float(result.abs().max())
            if largest > limit:
                found.setdefault(name, largest)

    hooks = [
        layer.register_forward_hook(lambda _, __, result, name=name: watch(name, result))
        for name, layer in contract.module.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    for name, largest in found.items():
        raise ExportError(
            f"{contract.name}: {name.removeprefix('module.')} gives {largest:.2g}; fp16 holds up "
            f"to {limit:.0f}. Export this network in fp32 or bf16."
        )


def open_session(path: Path, network: str) -> Any:
    """Return an ONNX file in onnxruntime on the CPU, run as it is written.

    Raises:
        ExportError: onnxruntime refuses it; the message begins with the network's name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The graph as it is written is what must be right, and folding would copy the weights.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Prepacking would copy weights that are mapped from the file.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no public base class of its errors
        raise ExportError(f"{network}: onnxruntime refuses {path}: {error}") from error


def _relative_error(
    contract: NetworkContract, output: str, found: np.ndarray, expected: np.ndarray
) -> float:
    network = contract.name
    if found.shape != expected.shape:
        raise ExportError(
            f"{network}: exported {output} is {list(found.shape)}, the module's "
            f"{list(expected.shape)}."
        )
    if not np.isfinite(expected).all():
        raise ExportError(
            f"{network}: {output} holds NaN or infinity before export already. The checkpoint's "
            "weights are damaged."
        )
    difference = float(np.abs(found.astype(np.float32) - expected).max())
    error = difference / max(float(np.abs(expected).max()), 1e-6)
    accepted = MAX_ERROR[contract.dtype]
    if not error <= accepted:
        raise ExportError(
            f"{network}: exported {output} differs from the module by {error:.2e} of the largest "
            f"value; accepted is {accepted:.0e}."
        )
    return error
