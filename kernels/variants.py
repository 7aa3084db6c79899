"""Variants of a kernel, and all that compiling one of them needs; imports neither torch nor triton.

A variant is a way to cut the work, not another result: an engine's builder may time several.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdengine.errors import BackendUnavailableError, ConfigError

ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
POINTER_TYPES = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
MAX_INT32 = 2**31 - 1
# The second and third dimension of a grid have 16 bits.
MAX_GRID_YZ = 65535


@dataclass(frozen=True)
class Variant:
    """Name one way to cut an operation into programs.

    Args:
        name: unique among the variants of an operation and shape.
        constants: compile-time sizes of the kernel.
        num_warps: of each program, 32 threads each.
        num_stages: how many blocks of a loop are in flight.
        shared_bytes: shared memory of a program, the most that any target needs.
    """

    name: str
    constants: Mapping[str, int]
    num_warps: int
    num_stages: int
    shared_bytes: int


@dataclass(frozen=True)
class Specialisation:
    """Say exactly which machine code to make: a kernel, its argument types and its constants.

    Args:
        op: name of the operation.
        function: module in `sdengine.kernels.device` and function, such as "geglu.geglu_kernel".
        arguments: name and Triton type of each run-time parameter: inputs, integers, outputs.
        constants: value of each compile-time parameter.
        variant: where num_warps and num_stages come from.
        aligned: arguments that are multiples of 16 (integers) or lie on 16 bytes (pointers).
    """

    op: str
    function: str
    arguments: tuple[tuple[str, str], ...]
    constants: Mapping[str, Any]
    variant: Variant
    aligned: frozenset[str] = field(default_factory=frozenset)

    def kernel(self) -> Any:
        """Return the Triton function.

        Raises:
            BackendUnavailableError: triton is not installed.
        """
        module, _, name = self.function.partition(".")
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


def dtype_support(dtype: str, cc: int | None) -> tuple[bool, str]:
    """Return whether a target computes with a data type, and why not.

    Args:
        dtype: float16, bfloat16 or float32.
        cc: compute capability times ten, or None for Triton's interpreter.
    """
    if dtype not in ELEMENT_BYTES:
        return False, f"data type {dtype} is none of {', '.join(ELEMENT_BYTES)}"
    if cc is not None and cc < 75:
        return False, f"compute capability {cc / 10} is older than 7.5"
    if dtype == "bfloat16" and cc is not None and cc < 80:
        return False, f"compute capability {cc / 10} has no bfloat16 arithmetic; 8.0 and newer do"
    return True, ""


def require(support: tuple[bool, str], op: str, hint: str = "Keep the plain operation.") -> None:
    """Raise unless an operation is supported.

    Raises:
        ConfigError: it is not; the message has the reason.
    """
    supported, reason = support
    if not supported:
        raise ConfigError(f"{op}: {reason}. {hint}")


def cdiv(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-dividend // divisor)


def next_power_of_two(number: int) -> int:
    """Return the least power of two that is no less than a positive number."""
    return 1 << (number - 1).bit_length()
