"""Takes plugins and forgets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class TensorDesc:
    """As TensorRT's."""


class AutoTuneCombination:
    """As TensorRT's."""


class KernelLaunchParams:
    """As TensorRT's."""


class SymIntExprs:
    """As TensorRT's."""


def register(identity: str) -> Callable[[Any], Any]:
    """Take what describes a plugin."""
    return lambda function: function


autotune = register
aot_impl = register
