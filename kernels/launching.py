"""Launcher of kernels on torch tensors: on their GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.kernels.variants import Specialisation

if TYPE_CHECKING:
    from torch import Tensor


def compute_capability(tensors: dict[str, Tensor]) -> int | None:
    """Return the compute capability, times ten, of the GPU that all tensors lie on.

    Args:
        tensors: by name of the argument.

    Returns:
        None where they lie on the CPU and Triton interprets kernels.

    Raises:
        ConfigError: they lie on several devices, or on the CPU without the interpreter.
        BackendUnavailableError: triton is not installed.
    """
    import torch

    devices = {str(tensor.device) for tensor in tensors.values()}
    if len(devices) != 1:
        raise ConfigError.for_field(", ".join(tensors), sorted(devices), "tensors of one device")
    first = next(iter(tensors.values()))
    if first.is_cuda:
        major, minor = torch.cuda.get_device_capability(first.device)
        return 10 * major + minor
    if not interprets():
        raise ConfigError.for_field(
            ", ".join(tensors),
            str(first.device),
            "tensors on an NVIDIA GPU",
            "Triton computes on the CPU only when TRITON_INTERPRET=1 is set before its import.",
        )
    return None


def launch(
    specialisation: Specialisation, grid: tuple[int, ...], arguments: dict[str, Any]
) -> None:
    """Run a kernel; an empty grid runs nothing.

    Args:
        specialisation: which.
        grid: number of programs along each axis.
        arguments: tensors and integers by parameter name.
    """
    if 0 in grid:
        return
    variant = specialisation.variant
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "enable_fp_fusion": True,
    }
    kernel_of(specialisation)[grid](**arguments, **specialisation.constants, **options)


def interprets() -> bool:
    """Return whether triton interprets kernels; it decides that once, at its own import.

    Raises:
        BackendUnavailableError: triton is not installed.
    """
    require_triton()
    from triton import JITFunction
    from triton.language import sum as reduction

    return not isinstance(reduction, JITFunction)


def kernel_of(specialisation: Specialisation) -> Any:
    """Return the Triton function of a specialisation.

    Raises:
        BackendUnavailableError: triton is not installed.
    """
    module, _, name = specialisation.function.partition(".")
    require_triton()
    return getattr(importlib.import_module(f"sdengine.kernels.device.{module}"), name)


def require_triton() -> None:
    """Import triton.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        importlib.import_module("triton")
    except ImportError as error:
        raise BackendUnavailableError(
            f"Kernels need triton, which does not import ({error}). "
            "Install it with: pip install triton (Linux)."
        ) from None
