"""Parts of plugins: what registers them, what offers tactics, what launches a compiled kernel.

Source: "TensorRT Python API: Quickly Deployable Plugins", NVIDIA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdengine.errors import EngineBuildError
from sdengine.export.fused_functions import DOMAIN
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.targets import PORTABLE_SHARED_BYTES
from sdengine.kernels.variants import Specialisation, Variant

# Kernels of 16 bits; TensorRT's name of each type.
_DTYPES = {"HALF": "float16", "BF16": "bfloat16"}
# Of a tensor in those types and of one in fp32 beside it, as TensorRT writes alternatives.
MAP_TYPES, MOMENT_TYPES = "FP16|BF16", "FP32|FP32"


@dataclass(frozen=True)
class PluginTarget:
    """Say what plugins are compiled for.

    Args:
        cc: compute capability of the GPU that engines are built for, times ten.
        ptx_version: newest PTX, times ten, that may be written: an engine holds PTX, which the
            driver of the machine that runs it must read.
    """

    cc: int
    ptx_version: int


def portable(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return those that need no more shared memory than a launch may take unasked."""
    return tuple(v for v in variants if v.shared_bytes < PORTABLE_SHARED_BYTES)


def register(
    trtp: Any,
    name: str,
    tensors: tuple[str, ...],
    attributes: dict[str, type],
    describe: Callable[..., Any],
    tactics: Callable[..., Any],
    implement: Callable[..., Any],
) -> None:
    """Give the functions the annotations that TensorRT reads, as types, and register them."""
    inputs: dict[str, Any] = {**dict.fromkeys(tensors, trtp.TensorDesc), **attributes}
    outputs = tuple[trtp.TensorDesc]
    describe.__annotations__ = {**inputs, "return": trtp.TensorDesc}
    tactics.__annotations__ = {
        **inputs,
        "outputs": outputs,
        "return": list[trtp.AutoTuneCombination],
    }
    implement.__annotations__ = {
        **inputs,
        "outputs": outputs,
        "tactic": int,
        "return": tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs],
    }
    identity = f"{DOMAIN}::{name}"
    trtp.register(identity)(describe)
    trtp.autotune(identity)(tactics)
    trtp.aot_impl(identity)(implement)


def combination(
    trtp: Any, types: Sequence[str], layouts: Sequence[str], variants: Sequence[Variant]
) -> Any:
    """Offer variants as tactics, numbered from 1 on, for tensors of these types and layouts."""
    tactics = list(range(1, len(variants) + 1))
    return trtp.AutoTuneCombination(", ".join(types), ", ".join(layouts), tactics)


def launch(
    trtp: Any,
    specialisation: Specialisation,
    target: PluginTarget,
    grid: tuple[Any, Any, Any],
    values: dict[str, Any],
) -> tuple[str, str, Any, Any]:
    """Compile a kernel and say how it is launched; its integers are passed in its own order."""
    compiled = compile_kernel(specialisation, target.cc, target.ptx_version)
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = grid
    params.block_x = compiled.threads
    params.shared_mem = compiled.shared_bytes
    integers = [name for name, kind in specialisation.arguments if not kind.startswith("*")]
    extra = trtp.SymIntExprs(len(integers))
    for index, name in enumerate(integers):
        extra[index] = trtp.SymInt32(values[name])
    return compiled.name, compiled.ptx, params, extra


def number(tensor: Any, axis: int) -> int:
    """Return a size that must be known when building."""
    # Not `shape_expr`, which is a stand-in while tactics are asked for.
    size = int(tensor.shape[axis])
    if size < 1:
        raise EngineBuildError(f"a plugin's input has an open size on axis {axis}.")
    return size


def dtype_of(tensor: Any) -> str:
    name = tensor.dtype.name
    if name not in _DTYPES:
        raise EngineBuildError(f"a plugin is asked for {name}; it computes {', '.join(_DTYPES)}.")
    return _DTYPES[name]
