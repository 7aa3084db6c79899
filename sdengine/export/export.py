"""Export one network to ONNX and prove that the file computes what the module does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from sdengine.backends.base import TensorSpec
from sdengine.errors import ConfigError, ExportError
from sdengine.export.networks import (
    NETWORKS,
    NetworkContract,
    text_encoder_contract,
    unet_contract,
    vae_decoder_contract,
    vae_encoder_contract,
)
from sdengine.export.onnx_graph import attach_weights, placeholders, trace, written_weights
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

# Relative to the largest output: rounding of fp32 in another order gives about 1e-6.
MAX_ERROR = 2e-4


@dataclass(frozen=True)
class ExportedNetwork:
    """A network on disk as ONNX.

    Args:
        name: the network's name in a bundle.
        onnx_path: the graph, its weights beside it in `<name>.onnx.data`; None for a target that
            runs the module itself.
        inputs, outputs: with symbolic dimensions.
        module: what it was exported from.
        max_error: largest difference between the two, relative to the largest output, over
            several batches and sizes; None when not compared.
    """

    name: str
    onnx_path: Path | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    module: nn.Module
    max_error: float | None


def make_contract(
    name: str,
    module: nn.Module,
    *,
    downscale: int = 8,
    controlnet: bool = True,
    num_time_ids: int = 6,
) -> NetworkContract:
    """Return what a network reads and writes.

    Args:
        name: one of NETWORKS.
        module: the CLIPTextEncoder, UNet2DConditionModel or AutoencoderKL.
        downscale: pixels along one side of a latent cell (U-Net).
        controlnet: let the U-Net read ControlNet residuals.
        num_time_ids: sizes and scores that a U-Net with size conditioning reads.
    """
    if name.startswith("text_encoder") and isinstance(module, CLIPTextEncoder):
        return text_encoder_contract(module, name)
    if name == "unet" and isinstance(module, UNet2DConditionModel):
        return unet_contract(
            module, downscale=downscale, controlnet=controlnet, num_time_ids=num_time_ids
        )
    if name == "vae_decoder" and isinstance(module, AutoencoderKL):
        return vae_decoder_contract(module)
    if name == "vae_encoder" and isinstance(module, AutoencoderKL):
        return vae_encoder_contract(module)
    raise ConfigError.for_field(
        "network", f"{name} of {type(module).__name__}", f"{', '.join(NETWORKS)} of its own module"
    )


def export_network(
    name: str,
    module: nn.Module,
    out_dir: Path,
    *,
    downscale: int = 8,
    controlnet: bool = True,
    num_time_ids: int = 6,
    check: bool = True,
) -> ExportedNetwork:
    """Write `<name>.onnx` and `<name>.onnx.data` and compare them with the module.

    Args:
        name, module, downscale, controlnet, num_time_ids: as for `make_contract`; in any float
            dtype on the CPU. The graph's weights are fp32.
        out_dir: an existing folder.
        check: run both in onnxruntime and torch and compare.

    Raises:
        ExportError: the module cannot be exported, or the file computes something else.
    """
    contract = make_contract(
        name, module, downscale=downscale, controlnet=controlnet, num_time_ids=num_time_ids
    )
    path = out_dir / f"{name}.onnx"
    data_path = out_dir / f"{name}.onnx.data"
    with placeholders(contract.module) as state:
        model = trace(contract, path)
        attach_weights(model, state, contract, data_path)
    onnx.save(model, path)
    error = None
    if check:
        with written_weights(model, contract.module, data_path):
            error = compare_with_module(path, contract)
    return ExportedNetwork(name, path, contract.inputs, contract.outputs, module, error)


def compare_with_module(path: Path, contract: NetworkContract) -> float:
    """Return the largest relative difference between an ONNX file and its module.

    Two batches and sizes are compared, neither of them the one that was traced.

    Raises:
        ExportError: an output differs by more than MAX_ERROR or is not finite.
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
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has no public base class of its errors
        raise ExportError(f"{contract.name}: onnxruntime refuses {path}: {error}") from error
    unit = contract.multiple
    worst = 0.0
    for seed, (batch, height, width) in enumerate(((1, unit, unit), (3, 2 * unit, unit)), 1):
        inputs = contract.example(batch, height, width, seed=seed)
        with torch.no_grad():
            expected = contract.module(*inputs)
        named = {s.name: x.numpy() for s, x in zip(contract.inputs, inputs, strict=True)}
        found = session.run([spec.name for spec in contract.outputs], named)
        wanted = (expected,) if isinstance(expected, torch.Tensor) else expected
        for spec, ours, theirs in zip(contract.outputs, found, wanted, strict=True):
            worst = max(worst, _relative_error(contract.name, spec.name, ours, theirs.numpy()))
    return worst


def _relative_error(network: str, output: str, found: np.ndarray, expected: np.ndarray) -> float:
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
    error = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6))
    if not error <= MAX_ERROR:
        raise ExportError(
            f"{network}: exported {output} differs from the module by {error:.2e} of the largest "
            f"value; accepted is {MAX_ERROR:.0e}."
        )
    return error
