"""Run a kernel on torch tensors: on their GPU, or in Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError
from sdengine.kernels.variants import Specialisation, require_triton

if TYPE_CHECKING:
    from torch import Tensor


def dtype_name(tensor: Tensor) -> str:
    """Return a tensor's data type as kernels name it, such as float16."""
    return str(tensor.dtype).removeprefix("torch.")


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
    specialisation.kernel()[grid](**arguments, **specialisation.constants, **options)


def interprets() -> bool:
    """Return whether triton interprets kernels; it decides that once, at its own import.

    Raises:
        BackendUnavailableError: triton is not installed.
    """
    require_triton()
    from triton import JITFunction
    from triton.language import sum as reduction

    return not isinstance(reduction, JITFunction)
