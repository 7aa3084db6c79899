"""Grids of programs: their limits, and sizes rounded up to blocks."""

from __future__ import annotations

MAX_INT32 = 2**31 - 1
# The second and third dimension of a grid have 16 bits.
MAX_YZ = 65535


def cdiv(dividend: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-dividend // divisor)


def next_power_of_two(number: int) -> int:
    """Return the least power of two that is no less than a positive number."""
    return 1 << (number - 1).bit_length()
