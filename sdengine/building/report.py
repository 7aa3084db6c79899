"""Build report: where time and memory went, and each network's error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdengine.compilers.native.sensitivity import LayerError

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Args:
        path: the bundle.
        seconds: by stage, such as "export unet".
        peak_bytes: the most memory that the process held while building, pages of mapped files
            left out because the system can take them back; 0 where unknown.
        max_error: by network, the ONNX file's largest error relative to the largest output;
            empty for targets that need no ONNX.
        bundle_bytes: size of all files.
        replaced: by network and operator, how many patterns of the graph became one node; empty
            for targets whose own compiler fuses.
        layers: by network, the errors of its layers; empty unless they were measured.
    """

    path: Path
    seconds: dict[str, float]
    peak_bytes: int
    max_error: dict[str, float]
    bundle_bytes: int
    replaced: dict[str, dict[str, int]]
    layers: dict[str, list[LayerError]]
