"""The cases: which model at which size, and the two bundles that are compared."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sdengine.errors import ConfigError, OutOfMemoryError, OutputError

ARCHITECTURES = ("demo", "sd15", "sd21", "tiny")
_NATIVE_SIDE = {"demo": 128, "sd15": 512, "sd21": 768, "tiny": 64}
# Largest resident memory while building and running, and disk for checkpoint and both bundles.
_MEMORY_GB = {"sd15": 12, "sd21": 14}
_DISK_GB = {"sd15": 8, "sd21": 8}


@dataclass(frozen=True)
class Case:
    """Describe one comparison.

    Attributes:
        arch: one of ARCHITECTURES; all but "demo" have seeded synthetic weights.
        resolution: side of the square image in pixels.
        steps, guidance_scale: of each request; guidance makes the U-Net's batch two.
        runs: counted requests of each side, after one warm-up.
        precision, baseline_precision: what each side computes in.
        threads: of both sides, or None for each runtime's own choice.
    """

    arch: str = "demo"
    resolution: int = 128
    steps: int = 4
    guidance_scale: float = 3.0
    runs: int = 5
    precision: str = "auto"
    baseline_precision: str = "fp32"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.arch not in ARCHITECTURES:
            raise ConfigError.for_field("arch", self.arch, ", ".join(ARCHITECTURES))
        if not 1 <= self.runs <= 1000:
            raise ConfigError.for_field("runs", self.runs, "a whole number from 1 to 1000")
        if self.baseline_precision not in ("fp32", "bf16"):
            raise ConfigError.for_field("baseline_precision", self.baseline_precision, "fp32, bf16")


def native_side(arch: str) -> int:
    """Return the side in pixels that an architecture was made for."""
    if arch not in _NATIVE_SIDE:
        raise ConfigError.for_field("arch", arch, ", ".join(ARCHITECTURES))
    return _NATIVE_SIDE[arch]


def prepare(case: Case, cache: Path) -> tuple[Path, Path]:
    """Return the bundles (ours, eager torch) of a case, building those that the cache lacks.

    Raises:
        OutOfMemoryError: the machine has too little memory or disk for the architecture.
    """
    from sdengine.export.build import build

    folder = cache / f"{case.arch}-{case.resolution}"
    ours, eager = folder / "openvino", folder / "torch"
    if ours.exists() and eager.exists():
        return ours, eager
    _check_room(case.arch, cache)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint: str | Path = "demo"
    if case.arch != "demo":
        from sdengine.checkpoints.synthetic import make_synthetic

        checkpoint = cache / f"{case.arch}-checkpoint"
        if not checkpoint.exists():
            make_synthetic(case.arch, checkpoint)
    for path, target in ((ours, "openvino"), (eager, "torch")):
        if not path.exists():
            build(checkpoint, path, target=target, resolutions=(case.resolution,))
    return ours, eager


def _check_room(arch: str, cache: Path) -> None:
    import psutil

    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{cache} cannot be made: {error.strerror}; use --cache") from error
    memory = psutil.virtual_memory().available / 1e9
    disk = shutil.disk_usage(cache).free / 1e9
    if memory < _MEMORY_GB.get(arch, 1):
        raise OutOfMemoryError(
            f"{arch} needs about {_MEMORY_GB[arch]} GB of free memory, found {memory:.1f} GB; "
            "close other programs or measure --arch demo"
        )
    if disk < _DISK_GB.get(arch, 1):
        raise OutOfMemoryError(
            f"{arch} needs about {_DISK_GB.get(arch, 1)} GB of disk in {cache}, found "
            f"{disk:.1f} GB; use --cache to name another folder"
        )
