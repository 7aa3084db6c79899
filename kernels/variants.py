"""Variants of a kernel, and all that compiling one of them needs; imports neither torch nor triton.

A variant is a way to cut the work, not another result: an engine's builder may time several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
