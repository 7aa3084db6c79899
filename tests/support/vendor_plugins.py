"""Load TensorRT's own Python for plugins over stand-ins of what its binary part holds.

The package `tensorrt-cu13-bindings` has the functions that check and call a plugin's functions. The
binary part beside them needs TensorRT's libraries, which are not on every index; it is replaced by
numbers in the place of its symbolic expressions.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class DataType(enum.Enum):
    """As TensorRT's, as far as plugins of ours go."""

    FLOAT = 0
    HALF = 1
    BF16 = 2
    INT32 = 3
    INT64 = 4


class TensorFormat(enum.Enum):
    """As TensorRT's."""

    LINEAR = 0
    HWC8 = 1
    HWC = 2


class Dims(tuple[int, ...]):
    """As TensorRT's."""

    MAX_DIMS = 8

    def __new__(cls, sizes: tuple[int, ...] | int) -> Dims:
        return super().__new__(cls, sizes if isinstance(sizes, tuple) else (0,) * sizes)


class DimensionOperation(enum.Enum):
    """As TensorRT's."""

    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    SUB = 4
    EQUAL = 5
    LESS = 6
    FLOOR_DIV = 7
    CEIL_DIV = 8


class IDimensionExpr:
    """A number, or a size that stays open and has a number while it is tested."""

    def __init__(self, value: int, constant: bool = True) -> None:
        self.value = value
        self.constant = constant

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        return self.value


_OPERATIONS: dict[DimensionOperation, Callable[[int, int], int]] = {
    DimensionOperation.SUM: lambda a, b: a + b,
    DimensionOperation.PROD: lambda a, b: a * b,
    DimensionOperation.MAX: max,
    DimensionOperation.MIN: min,
    DimensionOperation.SUB: lambda a, b: a - b,
    DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class ExprBuilder:
    """Computes at once what TensorRT would keep as expressions."""

    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(
        self, op: DimensionOperation, first: IDimensionExpr, second: IDimensionExpr
    ) -> IDimensionExpr:
        value = _OPERATIONS[op](first.value, second.value)
        return IDimensionExpr(value, first.constant and second.constant)


class _AnyMember(type):
    """Lets a class have every member."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Anything(metaclass=_AnyMember):
    """Stands for every class of the binary part that is derived from or made, and never used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _AnyMember(name, (_Anything,), {})
        setattr(self, name, made)
        return made


def load_vendor_plugins(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the vendor's module `tensorrt.plugin`; it is gone after the test."""
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    place = Path(found.origin).parent / "plugin"
    stub = _Stub("tensorrt")
    registry = type(
        "Registry", (), {"register_creator": lambda *_: True, "get_creator": lambda *_: None}
    )
    types = {
        "DataType": DataType,
        "TensorFormat": TensorFormat,
        "DimensionOperation": DimensionOperation,
        "IDimensionExpr": IDimensionExpr,
        "get_plugin_registry": registry,
        "float32": DataType.FLOAT,
        "float16": DataType.HALF,
        "bfloat16": DataType.BF16,
        "nptype": lambda dtype: np.float32,
        "Logger": _AnyMember("Logger", (_Anything,), {"log": lambda *_: None, "WARNING": 0}),
        "Dims": Dims,
        "__path__": [],
    }  # fmt: skip
    for name, value in types.items():
        setattr(stub, name, value)
    for name in [known for known in sys.modules if known.partition(".")[0] == "tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorrt", stub)
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", place / "__init__.py", submodule_search_locations=[str(place)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", module)
    stub.__dict__["plugin"] = module
    with warnings.catch_warnings():
        # Compiling the vendor's sources warns of escapes in their strings.
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module
