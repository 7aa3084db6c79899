"""Build options: the one list of them, checked before any work is done."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from sdengine.backends.cache_file import present_gpu
from sdengine.building.report import Progress
from sdengine.bundle.controls import check_control_name
from sdengine.compilers import COMPILERS
from sdengine.compilers.base import CompileSpec
from sdengine.compilers.tensorrt.engine import FLAVOURS, FULL, target_capabilities
from sdengine.compilers.tensorrt.kernel_choice import NATIVE, TRITON
from sdengine.compilers.tensorrt.options import TensorRtOptions
from sdengine.compilers.tensorrt.plugin_nodes import AUTO, KERNELS
from sdengine.compilers.tensorrt.quantisation.calibration import PROMPTS, read_prompts
from sdengine.compilers.tensorrt.quantisation.formats import FORMATS, NumberFormat, check_format
from sdengine.errors import ConfigError
from sdengine.export.sizes import check_batch, parse_sizes
from sdengine.models.dtypes import TORCH_DTYPES

_DISTRIBUTIONS = ("torch", "onnx", "onnxruntime", "safetensors")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What `build` is asked for; each field is explained there.

    Raises:
        ConfigError: an option is invalid, or the target does not have it.
    """

    target: str = "native"
    resolutions: Sequence[int | tuple[int, int]] | None = None
    batch: int | None = None
    precision: str = "fp16"
    calibration: str | os.PathLike[str] | None = None
    controlnet: bool = True
    controls: Mapping[str, str | os.PathLike[str]] | None = None
    image_encoder: str | os.PathLike[str] | None = None
    gpus: Sequence[str] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    kernels: str = "auto"
    timing_cache: str | os.PathLike[str] | None = None
    measure_layers: bool = False
    force: bool = False
    cache: bool = True
    progress: Progress | None = None
    cancel: threading.Event | None = None

    def __post_init__(self) -> None:
        """Refuse what no build can do; `capabilities` refuses GPUs."""
        if self.target not in COMPILERS:
            raise ConfigError.for_field("target", self.target, ", ".join(COMPILERS))
        self._check_precision()
        if self.batch is not None:
            check_batch(self.batch)
        if self.resolutions is not None:
            parse_sizes(self.resolutions)
        self._check_controls()
        if self.image_encoder is not None and self.target != "native":
            raise ConfigError.for_field(
                "image_encoder",
                str(self.image_encoder),
                f"none with target {self.target}, whose U-Nets read no pictures of IP-Adapters",
                "Build for target native, which does.",
            )
        self._check_limits()
        gpu_capabilities(self.target, tuple(self.gpus))
        self._check_quantisation()
        self._check_kernels()
        if self.timing_cache is not None and self.target != FULL.target:
            raise ConfigError(
                f"timing_cache: only target {FULL.target} has one, and this build is for "
                f"{self.target}. Leave {str(self.timing_cache)!r} out."
            )
        if self.measure_layers and self.target != "native" and self.number_format is None:
            raise ConfigError(
                "measure_layers: only the layers of target native, and of engines in "
                f"{' or '.join(FORMATS)}, are measured, and this build is for {self.target} in "
                f"{self.precision}."
            )

    def completed(self, sizes: Sequence[tuple[int, int]], batch: int) -> BuildOptions:
        """Return the options with a checkpoint's own sizes and batch where none were named."""
        return replace(
            self,
            resolutions=sizes if self.resolutions is None else self.resolutions,
            batch=batch if self.batch is None else self.batch,
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height in pixels of each of the resolutions, each once, once completed."""
        assert self.resolutions is not None
        return tuple(parse_sizes(self.resolutions))

    @property
    def capabilities(self) -> list[int]:
        """Compute capabilities that engines are built for; none for other targets."""
        return gpu_capabilities(self.target, tuple(self.gpus))

    @property
    def number_format(self) -> NumberFormat | None:
        """Of the U-Net's layers in eight bits; None where all compute in `float_precision`."""
        return FORMATS.get(self.precision)

    @property
    def float_precision(self) -> str:
        """What networks are exported in: 16 bits where the U-Net's layers have eight."""
        return float_precision(self.precision)

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts of the calibration.

        Raises:
            ConfigError: their file is none.
        """
        return PROMPTS if self.calibration is None else read_prompts(Path(self.calibration))

    def compile_spec(self, progress: Progress | None = None) -> CompileSpec:
        """Return what every network is compiled for.

        Args:
            progress: told how far the compiler is.
        """
        assert self.batch is not None
        cache = None if self.timing_cache is None else Path(self.timing_cache).absolute()
        tensorrt = TensorRtOptions(
            gpus=tuple(self.gpus),
            workspace_bytes=self.workspace_bytes,
            optimization_level=self.optimization_level,
            kernels=self.kernels,
            timing_cache=cache,
        )
        return CompileSpec(
            precision=self.float_precision,
            sizes=self.sizes,
            batch=self.batch,
            progress=progress,
            cancel=self.cancel,
            tensorrt=tensorrt,
        )

    def _check_precision(self) -> None:
        accepted = [*TORCH_DTYPES, *(FORMATS if self.target in FLAVOURS else ())]
        if self.precision not in accepted:
            eight_bits = f"{' and '.join(FORMATS)} are for targets {' and '.join(FLAVOURS)}."
            hint = eight_bits if self.precision in FORMATS else ""
            raise ConfigError.for_field("precision", self.precision, ", ".join(accepted), hint)

    def _check_quantisation(self) -> None:
        if self.number_format is None:
            if self.calibration is not None:
                raise ConfigError(
                    f"calibration: only engines in {' or '.join(FORMATS)} are calibrated, and this "
                    f"build is in {self.precision}. Leave {str(self.calibration)!r} out."
                )
            return
        self.prompts()
        check_format(self.number_format, self.capabilities or [present_gpu()[1]])

    def _check_controls(self) -> None:
        if self.controls is None:
            return
        if not isinstance(self.controls, Mapping):
            raise ConfigError.for_field("controls", self.controls, "folders by the controls' names")
        for name in self.controls:
            check_control_name(name)
        if self.controls and not self.controlnet:
            raise ConfigError(
                f"controls: {', '.join(self.controls)} would steer nothing, because with "
                "controlnet=False (--no-controlnet) the U-Net reads no residuals. Leave one out."
            )

    def _check_limits(self) -> None:
        workspace, level = self.workspace_bytes, self.optimization_level
        if workspace is not None and not (type(workspace) is int and workspace > 0):
            raise ConfigError.for_field("workspace_bytes", workspace, "a positive integer")
        if level is not None and not (type(level) is int and 0 <= level <= 5):
            raise ConfigError.for_field("optimization_level", level, "an integer from 0 to 5")

    def _check_kernels(self) -> None:
        if self.kernels not in KERNELS or (self.kernels == TRITON and self.target != FULL.target):
            raise ConfigError.for_field(
                "kernels",
                self.kernels,
                f"{AUTO} or {NATIVE}, or {TRITON} for target {FULL.target}, which alone has "
                "plugins",
            )


class BuildKeywords(TypedDict, total=False):
    """The fields of `BuildOptions` for type checkers; a test compares the two."""

    target: str
    resolutions: Sequence[int | tuple[int, int]] | None
    batch: int | None
    precision: str
    calibration: str | os.PathLike[str] | None
    controlnet: bool
    controls: Mapping[str, str | os.PathLike[str]] | None
    image_encoder: str | os.PathLike[str] | None
    gpus: Sequence[str]
    workspace_bytes: int | None
    optimization_level: int | None
    kernels: str
    timing_cache: str | os.PathLike[str] | None
    measure_layers: bool
    force: bool
    cache: bool
    progress: Progress | None
    cancel: threading.Event | None


def gpu_capabilities(target: str, gpus: tuple[str, ...]) -> list[int]:
    """Return the compute capabilities that engines are built for; none for other targets.

    Raises:
        ConfigError: see `target_capabilities`; or the target does not build for GPUs.
    """
    if target in FLAVOURS:
        return target_capabilities(FLAVOURS[target], gpus)
    if gpus:
        raise ConfigError(
            f"gpus: target {target} is not built for one, but {', '.join(gpus)} was named. "
            f"{' and '.join(FLAVOURS)} are."
        )
    return []


def float_precision(precision: str) -> str:
    """Return what networks, or what layers with more than eight bits, are exported in."""
    return "fp16" if precision in FORMATS else precision


def versions(target: str) -> dict[str, str]:
    """Return the versions of what a build for a target uses."""
    names = (*_DISTRIBUTIONS, COMPILERS[target].distribution)
    return {name: importlib.metadata.version(name) for name in names if name}
