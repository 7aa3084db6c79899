"""Checks of single values: each returns the plain value or raises an error that names the field."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

from sdengine.errors import ConfigError


def text(field: str, value: Any, max_characters: int) -> str:
    """Return valid Unicode text of a bounded length."""
    if not isinstance(value, str):
        raise ConfigError.for_field(field, value, "text")
    if len(value) > max_characters:
        raise ConfigError(
            f"{field}: {len(value)} characters; at most {max_characters} are accepted."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError.for_field(field, value, "valid Unicode text") from None
    return str(value)


def whole(field: str, value: Any, low: int, high: int) -> int:
    """Return a whole number in a range; NumPy's count, booleans do not."""
    accepted = f"a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise ConfigError.for_field(field, value, accepted)
    try:
        integer = operator.index(value)
    except TypeError:
        raise ConfigError.for_field(field, value, accepted) from None
    if not low <= integer <= high:
        raise ConfigError.for_field(field, _Shown(integer), accepted)
    return integer


def number(field: str, value: Any, low: float, high: float) -> float:
    """Return a finite number in a range."""
    accepted = f"a number from {low:g} to {high:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError.for_field(field, value, accepted)
    try:
        real = float(value)
    except OverflowError:
        real = math.inf
    if not (math.isfinite(real) and low <= real <= high):
        raise ConfigError.for_field(field, real, accepted)
    return real


def pair(field: str, value: Any, low: int, high: int) -> tuple[int, int]:
    """Return two whole numbers in a range."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError.for_field(field, value, "two whole numbers")
    return whole(field, value[0], low, high), whole(field, value[1], low, high)


def choice(field: str, value: Any, accepted: tuple[str, ...]) -> str:
    """Return one of the accepted names."""
    if not isinstance(value, str) or value not in accepted:
        raise ConfigError.for_field(field, value, f"one of {', '.join(accepted)}")
    return value


class _Shown:
    """Show a whole number however long: Python refuses to print the longest ones in full."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __repr__(self) -> str:
        digits = self._value.bit_length() * 0.30103
        return repr(self._value) if digits < 100 else f"a number of about {digits:.0f} digits"
