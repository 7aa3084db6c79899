"""Compiler contract: what a network is compiled for, and what compiling made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdengine.bundle.manifest import NetworkOptions
from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.tensorrt.options import TensorRtOptions


@dataclass(frozen=True)
class CompileSpec:
    """Say what a network is compiled for.

    Args:
        precision: "fp32", "bf16" or "fp16": what weights are stored in.
        sizes: width and height in pixels of each image size that requests may ask for.
        batch: images that one run makes.
        progress: told what is going on, the steps done and all steps.
        cancel: once set, compiling ends with `Cancelled`.
        tensorrt: what targets tensorrt and tensorrt-rtx want to know beside it.
    """

    precision: str
    sizes: tuple[tuple[int, int], ...]
    batch: int = 1
    progress: Callable[[str, int, int], None] | None = None
    cancel: threading.Event | None = None
    tensorrt: TensorRtOptions = field(default_factory=TensorRtOptions)


@dataclass(frozen=True)
class Compiled:
    """Name what compiling a network made.

    Args:
        files: their names.
        peak_bytes: the most memory that processes beside this one held meanwhile.
        replaced: by operator, how many patterns of the graph became one node.
        options: what the manifest says about the network, beside what the build itself knows.
        inputs, outputs: of what was made, where they are not the network's own.
    """

    files: list[str]
    peak_bytes: int = 0
    replaced: Mapping[str, int] = field(default_factory=dict)
    options: NetworkOptions = field(default_factory=NetworkOptions)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
