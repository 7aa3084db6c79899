"""The two bundles of a case, built by the command in processes of their own and kept.

python -m sdengine.benchmarks.bundles sd15 tensorrt-rtx DIR   # those of a GPU's comparisons
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.benchmarks.cases import ENGINE_TARGETS, GPU_SIDES, TARGETS, Case, native_side
from sdengine.benchmarks.modules import module_command
from sdengine.bundle.reader import open_bundle
from sdengine.errors import (
    BundleError,
    EngineBuildError,
    OutOfMemoryError,
    OutputError,
    SdengineError,
)
from sdengine.version import __version__

Progress = Callable[[str], None]

# Largest resident memory while building and running, and disk for checkpoint and both bundles.
_MEMORY_GB = {"sd15": 12, "sd21": 14, "sdxl": 40}
_DISK_GB = {"sd15": 11, "sd21": 11, "sdxl": 28}
# Where a GPU computes, building is what takes the host's memory.
_GPU_HOST_MEMORY_GB = {"sd15": 8, "sd21": 8, "sdxl": 17}


@dataclass(frozen=True)
class Built:
    """A bundle, and what `sdengine build --json` said of it; None for the one in the package."""

    path: str
    report: dict[str, Any] | None


def prepare(
    case: Case, cache: Path, progress: Progress, *, rebuild: bool = False
) -> dict[str, Built]:
    """Return both sides' bundles, "ours" and "baseline", building what the cache lacks.

    Args:
        case: what will be measured.
        cache: folder of earlier builds; it is made when missing.
        progress: told what is going on.
        rebuild: build again whatever is there.

    Raises:
        OutOfMemoryError: the machine has too little memory or disk for the architecture.
        OutputError: the cache cannot be written.
        EngineBuildError: a build failed.
    """
    from sdengine.checkpoints import load_checkpoint

    make_folder(cache)
    check_memory(case.arch, case.device)
    checkpoint = "demo"
    if case.arch != "demo":
        checkpoint = str(synthetic_checkpoint(case.arch, cache, progress))
    progress("reading the checkpoint")
    sha256 = load_checkpoint(checkpoint).sha256
    built: dict[str, Built] = {}
    for side, target in (("ours", case.bundle_target), ("baseline", "torch")):
        if target == "native" and case.arch == "demo" and _package_has(case):
            built[side] = Built("demo", None)
            continue
        path = bundle_path(case, cache, target)
        report = path.with_name(f"{path.name}.json")
        make_folder(path.parent)
        is_made = any(other.path == str(path) for other in built.values())
        is_kept = not rebuild and report.exists() and is_current(path, sha256)
        if not (is_made or is_kept):
            progress(f"building {case.arch} for {target}")
            report.write_text(_build(case, checkpoint, path, target))
        built[side] = Built(str(path), json.loads(report.read_text()))
    return built


def bundle_path(case: Case, cache: Path, target: str) -> Path:
    """Return where `prepare` puts the bundle of one of a case's targets."""
    sides = "-".join(map(str, case.built_sides))
    folder = cache / f"{case.arch}-{sides}-batch{case.batch_size}"
    return folder / f"{target}{_built_precision(case, target)}"


def check_memory(arch: str, device: str = "cpu") -> None:
    """Refuse an architecture that the free memory cannot hold."""
    import psutil

    sizes = _GPU_HOST_MEMORY_GB if device == "cuda" else _MEMORY_GB
    needed, found = sizes.get(arch, 1), psutil.virtual_memory().available / 1e9
    if found < needed:
        raise OutOfMemoryError(
            f"arch {arch} needs about {needed} GB of free memory, found {found:.1f} GB. Close "
            "other programs or measure --arch demo."
        )


def synthetic_checkpoint(arch: str, cache: Path, progress: Progress) -> Path:
    """Return a checkpoint of an architecture with seeded weights, made where it is missing."""
    from sdengine.benchmarks.tiny import TINY_SD15
    from sdengine.checkpoints.synthetic import make_synthetic

    checkpoint = cache / f"{arch}-checkpoint"
    if not checkpoint.exists():
        needed, found = _DISK_GB.get(arch, 1), shutil.disk_usage(cache).free / 1e9
        if found < needed:
            raise OutOfMemoryError(
                f"arch {arch} needs about {needed} GB of disk in {cache}, found {found:.1f} GB. "
                "Name another folder with --cache."
            )
        progress(f"writing a synthetic {arch} checkpoint")
        make_synthetic(TINY_SD15 if arch == "tiny" else arch, checkpoint)
    return checkpoint


def _package_has(case: Case) -> bool:
    manifest = open_bundle("demo", verify="size").manifest
    size = (case.resolution, case.resolution)
    return size in manifest.resolutions and case.batch_size <= manifest.max_batch


def _built_precision(case: Case, target: str) -> str:
    """Return what a bundle's name says of its precision: nothing where loading decides it."""
    decides = target in ENGINE_TARGETS and case.precision != "auto"
    return f"-{case.precision}" if decides else ""


def is_current(path: Path, sha256: str) -> bool:
    """Say whether a kept bundle was built from this checkpoint by this release."""
    try:
        manifest = open_bundle(path, verify="size").manifest
    except BundleError:
        return False
    return manifest.source.sha256 == sha256 and manifest.sdengine_version == __version__


def _build(case: Case, checkpoint: str, path: Path, target: str) -> str:
    command = module_command("sdengine", "build", checkpoint, "--output", path)
    command += ["--target", target, "--resolutions", ",".join(map(str, case.built_sides))]
    command += ["--batch", str(case.batch_size), "--force", "--json"]
    if _built_precision(case, target):
        command += ["--precision", case.precision]
    if target == "torch":
        command.append("--no-controlnet")  # eager torch needs no inputs for what is not there
    return run_build(command, path)


def run_build(command: Sequence[str], path: Path) -> str:
    """Run a command that builds a bundle; return what it says.

    Raises:
        EngineBuildError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EngineBuildError(f"building {path} failed: {last.removeprefix('error: ')}")
    return done.stdout


def make_folder(folder: Path) -> None:
    """Make a folder of the cache where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be made: {error.strerror}. Name another folder with --cache."
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the bundles of an architecture that a target's comparison on a GPU needs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("arch", choices=tuple(GPU_SIDES))
    parser.add_argument("target", choices=TARGETS["cuda"])
    parser.add_argument("cache", type=Path)
    options = parser.parse_args(arguments)
    side = native_side(options.arch)
    case = Case(options.arch, side, device="cuda", target=options.target, baseline_precision="fp16")
    try:
        for name, built in prepare(case, options.cache, print).items():
            print(f"{name}: {built.path}")
    except SdengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
