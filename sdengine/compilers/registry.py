"""Compiler registry: a target's compiler by name, loaded on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sdengine.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from sdengine.compilers.base import Compiled, CompileSpec
    from sdengine.export.network import ExportedNetwork

# Writes a network's files into an existing folder.
Compile = Callable[["ExportedNetwork", Path, "CompileSpec"], "Compiled"]

COMPILERS: Mapping[str, str] = MappingProxyType(
    {
        "native": "sdengine.compilers.native.compile:compile_native",
        "openvino": "sdengine.compilers.openvino:compile_openvino",
        "torch": "sdengine.compilers.torch:compile_torch",
        "tensorrt-rtx": "sdengine.compilers.tensorrt.engine:compile_rtx",
        "tensorrt": "sdengine.compilers.tensorrt.engine:compile_full",
    }
)


def get_compiler(target: str) -> Compile:
    """Return what writes a network's files for a target.

    Raises:
        ConfigError: there is no such target.
        BackendUnavailableError: a package that its code needs is not installed.
    """
    if target not in COMPILERS:
        raise ConfigError.for_field("target", target, ", ".join(COMPILERS))
    module_name, _, function = COMPILERS[target].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BackendUnavailableError(
            f"target {target}: {error}. Install it: pip install 'sdengine[build]'."
        ) from None
    compiler: Compile = getattr(module, function)
    return compiler
