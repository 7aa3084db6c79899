"""Check what a build is asked for, before any work is done."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt.engine import (
    FLAVOURS,
    FULL,
    REFIT_FLAG,
    STRIP_FLAG,
    target_capabilities,
)
from sdengine.compilers.tensorrt.kernel_choice import NATIVE, TRITON
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.compilers.tensorrt.plugin_nodes import AUTO, KERNELS
from sdengine.compilers.tensorrt.refit_probe import require_flags
from sdengine.errors import ConfigError
from sdengine.export.sizes import check_batch, parse_sizes
from sdengine.models.contracts import PRECISIONS

# Targets whose compiler reads ONNX; the others take the module itself.
TARGETS = {"native": True, "openvino": True, "torch": False, **dict.fromkeys(FLAVOURS, True)}
_DISTRIBUTIONS = ("torch", "onnx", "onnxruntime", "safetensors")
_TARGET_DISTRIBUTIONS = {
    "openvino": "openvino",
    "tensorrt-rtx": "tensorrt-rtx-cu13",
    "tensorrt": "tensorrt",
}


@dataclass(frozen=True)
class BuildOptions:
    """What `build` was asked for; see there."""

    target: str
    resolutions: Sequence[int | tuple[int, int]]
    batch: int
    precision: str
    gpus: Sequence[str]
    workspace_bytes: int | None
    optimization_level: int | None
    kernels: str
    timing_cache: str | os.PathLike[str] | None
    refit: bool
    strip: bool
    measure_layers: bool
    cancel: threading.Event | None

    def checked(self) -> tuple[CompileSpec, list[int]]:
        """Return what every network is compiled for, and the compute capabilities among it.

        Raises:
            ConfigError: an option is invalid, or the target does not have it.
            BackendUnavailableError: weights shall be exchanged or left out, which this machine's
                builder cannot do.
        """
        if self.target not in TARGETS:
            raise ConfigError.for_field("target", self.target, ", ".join(TARGETS))
        if self.precision not in PRECISIONS:
            raise ConfigError.for_field("precision", self.precision, ", ".join(PRECISIONS))
        check_batch(self.batch)
        sizes = parse_sizes(self.resolutions)
        self._check_limits()
        capabilities = gpu_capabilities(self.target, tuple(self.gpus))
        self._check_kernels()
        if self.timing_cache is not None and self.target != FULL.target:
            raise ConfigError(
                f"timing_cache: only target {FULL.target} keeps its measurements, and target "
                f"{self.target} would not use {str(self.timing_cache)!r}. Leave timing_cache out."
            )
        if self.measure_layers and self.target != "native":
            raise ConfigError.for_field(
                "measure_layers", True, "False for other targets than native"
            )
        flags = self._builder_flags(capabilities)
        cache = None if self.timing_cache is None else Path(self.timing_cache).absolute()
        tensorrt = TensorRtOptions(
            gpus=tuple(self.gpus),
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
            kernels=self.kernels,
            timing_cache=cache,
            builder_flags=flags,
        )
        spec = CompileSpec(
            precision=self.precision,
            sizes=tuple(sizes),
            batch=self.batch,
            cancel=self.cancel,
            tensorrt=tensorrt,
        )
        return spec, capabilities

    def _check_limits(self) -> None:
        workspace, level = self.workspace_bytes, self.optimization_level
        if workspace is not None and not (type(workspace) is int and workspace > 0):
            raise ConfigError.for_field("workspace_bytes", workspace, "a positive whole number")
        if level is not None and not (type(level) is int and 0 <= level <= 5):
            raise ConfigError.for_field("optimization_level", level, "a whole number from 0 to 5")

    def _check_kernels(self) -> None:
        if self.kernels not in KERNELS or (self.kernels == TRITON and self.target != FULL.target):
            raise ConfigError.for_field(
                "kernels",
                self.kernels,
                f"{AUTO} or {NATIVE}, or {TRITON} for target {FULL.target}, which alone has "
                "plugins",
            )

    def _builder_flags(self, capabilities: list[int]) -> tuple[str, ...]:
        wanted = {REFIT_FLAG: self.refit, STRIP_FLAG: self.strip}
        flags = tuple(flag for flag, on in wanted.items() if on)
        if flags and self.target not in FLAVOURS:
            field = "refit" if self.refit else "strip"
            raise ConfigError.for_field(field, True, f"False but for {', '.join(FLAVOURS)}")
        if flags:
            require_flags(FLAVOURS[self.target], flags, capabilities)
        return flags


def gpu_capabilities(target: str, gpus: tuple[str, ...]) -> list[int]:
    """Return the compute capabilities that engines are built for; none for other targets.

    Raises:
        ConfigError: see `target_capabilities`.
    """
    if target in FLAVOURS:
        return target_capabilities(FLAVOURS[target], gpus)
    if gpus:
        raise ConfigError(
            f"gpu: target {target} runs on no GPU that a build would have to know, so "
            f"{', '.join(gpus)} cannot be named. Leave gpu out."
        )
    return []


def versions(target: str) -> dict[str, str]:
    """Return the versions of what a build for a target uses."""
    names = [*_DISTRIBUTIONS]
    if target in _TARGET_DISTRIBUTIONS:
        names.append(_TARGET_DISTRIBUTIONS[target])
    return {name: importlib.metadata.version(name) for name in names}
