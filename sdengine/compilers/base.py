"""Compiler contract: what a network is compiled for, and what compiling made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class CompileSpec:
    """Say what a network is compiled for.

    Args:
        precision: "fp32", "bf16" or "fp16": what weights are stored in.
        sizes: width and height in pixels of each image size that requests may ask for.
        batch: images that one run makes.
        gpus: names of the GPUs that it shall run on, where the target wants them.
        workspace_bytes: the most that a run may take for scratch; None is the compiler's choice.
        optimization_level: how long the compiler searches, 0 to 5; None is its own default.
        kernels: "native" for the compiler's own, "triton" for ours where one computes the node, or
            "auto" for the faster of the two.
        timing_cache: where the compiler keeps what it measured; None is the user's cache.
        progress: told what is going on, the steps done and all steps.
        cancel: once set, compiling ends with `Cancelled`.
    """

    precision: str
    sizes: tuple[tuple[int, int], ...]
    batch: int = 1
    gpus: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    kernels: str = "auto"
    timing_cache: Path | None = None
    progress: Callable[[str, int, int], None] | None = None
    cancel: threading.Event | None = None


@dataclass(frozen=True)
class Compiled:
    """What compiling a network made.

    Args:
        files: their names.
        peak_bytes: the most memory that processes beside this one held meanwhile.
        replaced: by operator, how many patterns of the graph became one node.
        options: what the manifest says about the network, beside what the build itself knows.
    """

    files: list[str]
    peak_bytes: int = 0
    replaced: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
