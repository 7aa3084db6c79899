"""TensorRT options: what a build may ask of TensorRT's builder and of no other compiler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdengine.compilers.tensorrt.quantisation.calibration import Calibration


@dataclass(frozen=True)
class TensorRtOptions:
    """Say how engines are built.

    Args:
        gpus: names of the GPUs that they shall run on; none is the one that is present.
        workspace_bytes: the most that a run may take for scratch; None is the builder's choice.
        optimization_level: how long the builder searches, 0 to 5; None is its own default.
        kernels: "native" for TensorRT's own, "triton" for ours where one computes the node, or
            "auto" for the faster of the two.
        timing_cache: where the builder keeps what it measured; None is the user's cache.
        calibration: by which the network computes in eight bits; None for none.
    """

    gpus: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    kernels: str = "auto"
    timing_cache: Path | None = None
    calibration: Calibration | None = None
