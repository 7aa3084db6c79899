"""Compiler registry: a target's compiler by name, loaded on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sdengine.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from sdengine.compilers.base import Compiled, CompileSpec
    from sdengine.export.network import ExportedNetwork

# Writes a network's files into an existing folder.
Compile = Callable[["ExportedNetwork", Path, "CompileSpec"], "Compiled"]


@dataclass(frozen=True)
class CompilerInfo:
    """Say where a target's compiler is, and what it needs.

    Args:
        code: "module:function".
        package: what must be installed beside `sdengine[build]`; empty for nothing.
        extra: what to install for it.
        distribution: whose version a bundle's manifest tells, beside those of every build.
        reads_onnx: it reads ONNX; if not, it takes the module itself.
    """

    code: str
    package: str = ""
    extra: str = "sdengine[build]"
    distribution: str = ""
    reads_onnx: bool = True


COMPILERS: Mapping[str, CompilerInfo] = MappingProxyType(
    {
        "native": CompilerInfo("sdengine.compilers.native.compile:compile_native"),
        "openvino": CompilerInfo(
            "sdengine.compilers.openvino:compile_openvino",
            package="openvino",
            extra="sdengine[openvino]",
            distribution="openvino",
        ),
        "torch": CompilerInfo("sdengine.compilers.torch:compile_torch", reads_onnx=False),
        "tensorrt-rtx": CompilerInfo(
            "sdengine.compilers.tensorrt.engine:compile_rtx",
            package="tensorrt_rtx",
            extra="sdengine[tensorrt-rtx]",
            distribution="tensorrt-rtx-cu13",
        ),
        "tensorrt": CompilerInfo(
            "sdengine.compilers.tensorrt.engine:compile_full",
            package="tensorrt",
            extra="sdengine[tensorrt]",
            distribution="tensorrt",
        ),
    }
)


def get_compiler(target: str) -> Compile:
    """Return what writes a network's files for a target.

    Raises:
        ConfigError: there is no such target.
        BackendUnavailableError: a package that it needs is not installed.
    """
    if target not in COMPILERS:
        raise ConfigError.for_field("target", target, ", ".join(COMPILERS))
    info = COMPILERS[target]
    if info.package and find_spec(info.package) is None:
        raise BackendUnavailableError(
            f"target {target} needs {info.package}, which is not installed. Install it: "
            f"pip install '{info.extra}'."
        )
    module_name, _, function = info.code.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"target {target}: {error}. Install it: pip install '{info.extra}'."
        ) from None
    compiler: Compile = getattr(module, function)
    return compiler
