"""Compiler of target torch: a network's weights as safetensors, named as in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdengine.checkpoints.weights import save_tensors
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.errors import ConfigError, EngineBuildError
from sdengine.models.contracts import has_weight
from sdengine.models.dtypes import TORCH_DTYPES

if TYPE_CHECKING:
    from sdengine.export.network import ExportedNetwork


def compile_torch(network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
    """Write `<name>.safetensors`.

    Args:
        network: only its module is used.
        out_dir: an existing folder.
        spec: only its precision is used.

    Raises:
        EngineBuildError: a weight is not finite in this precision.
    """
    if spec.precision not in TORCH_DTYPES:
        raise ConfigError.for_field("precision", spec.precision, ", ".join(TORCH_DTYPES))
    assert network.module is not None  # builds for this target do not export
    state = {}
    for name, tensor in network.module.state_dict().items():
        if not has_weight(network.name, name):
            continue
        state[name] = tensor.to(TORCH_DTYPES[spec.precision]).contiguous()
        if not torch.isfinite(state[name]).all():
            raise EngineBuildError(
                f"{network.name}: weight {name!r} is not finite in {spec.precision}. Build with "
                "--precision fp32."
            )
    path = out_dir / f"{network.name}.safetensors"
    save_tensors(state, path)
    return Compiled([path.name])
