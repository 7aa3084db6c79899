"""Bundles that are measured, built by the command in processes of their own and kept.

python -m sdengine.benchmarks.bundles sd15 tensorrt-rtx DIR   # those of a GPU's comparisons
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.benchmarks.cases import ENGINE_TARGETS, GPU_SIDES, TARGETS, native_side
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
_MEMORY_GB = {"sd15": 12, "sd21": 14, "sdxl": 20}
_DISK_GB = {"sd15": 11, "sd21": 11, "sdxl": 28}
# Where a GPU computes, building is what takes the host's memory.
_GPU_HOST_MEMORY_GB = {"sd15": 8, "sd21": 8, "sdxl": 17}


@dataclass(frozen=True)
class Built:
    """A bundle, and what `sdengine build --json` said of it; None for the one in the package."""

    path: str
    report: dict[str, Any] | None


@dataclass(frozen=True)
class Model:
    """What bundles are built of, and for which requests.

    Args:
        arch: a key of NATIVE_SIDES, or with a checkpoint what it is called.
        sides: of the square pictures in pixels.
        batch_size: the largest.
        device: "cpu" or "cuda".
        checkpoint: a folder or file; None for the demo model's or a synthetic one.
        flags: of `sdengine build` besides, such as those of a ControlNet.
    """

    arch: str
    sides: tuple[int, ...]
    batch_size: int = 1
    device: str = "cpu"
    checkpoint: str | None = None
    flags: tuple[str, ...] = ()

    @classmethod
    def on_gpu(cls, arch: str) -> Model:
        """Return an architecture as it would be deployed on a GPU: all sizes in one bundle."""
        native_side(arch)
        return cls(arch, GPU_SIDES[arch], device="cuda")


def checkpoint_of(model: Model, cache: Path, progress: Progress) -> str:
    """Return the model's checkpoint, writing a synthetic one that the cache lacks.

    Raises:
        OutOfMemoryError: the machine has too little memory or disk for the architecture.
        OutputError: the cache cannot be written.
    """
    if model.checkpoint is not None:
        return model.checkpoint
    make_folder(cache)
    check_memory(model.arch, model.device)
    if model.arch == "demo":
        return "demo"
    return str(synthetic_checkpoint(model.arch, cache, progress))


def bundle_of(
    model: Model,
    target: str,
    cache: Path,
    progress: Progress,
    *,
    precision: str = "auto",
    rebuild: bool = False,
) -> Built:
    """Return a model's bundle for a target, building it where the cache lacks it.

    Args:
        model: what to build.
        target: of the bundle.
        cache: folder of earlier builds; it is made when missing.
        progress: told what is going on.
        precision: what engines compute in; other targets decide when they load.
        rebuild: build again whatever is there.

    Raises:
        OutOfMemoryError: the machine has too little memory or disk for the architecture.
        OutputError: the cache cannot be written.
        EngineBuildError: the build failed.
    """
    from sdengine.checkpoints import load_checkpoint

    checkpoint = checkpoint_of(model, cache, progress)
    if target == "native" and checkpoint == "demo" and not model.flags and _package_has(model):
        return Built("demo", None)
    progress("reading the checkpoint")
    sha256 = load_checkpoint(checkpoint).sha256
    path = bundle_path(model, target, cache, precision)
    report = path.with_name(f"{path.name}.json")
    make_folder(path.parent)
    if rebuild or not report.exists() or not is_current(path, sha256):
        progress(f"building {model.arch} for {target}")
        report.write_text(_build(model, checkpoint, path, target, precision))
    return Built(str(path), json.loads(report.read_text()))


def bundle_path(model: Model, target: str, cache: Path, precision: str = "auto") -> Path:
    """Return where `bundle_of` puts a bundle."""
    sides = "-".join(map(str, model.sides))
    folder = cache / f"{model.arch}-{sides}-batch{model.batch_size}"
    if model.flags:
        folder = folder.with_name(f"{folder.name}-{_digest(model.flags)}")
    return folder / f"{target}{_built_precision(target, precision)}"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]


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
    """Return the synthetic checkpoint of an architecture, writing it where the cache lacks it."""
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


def _package_has(model: Model) -> bool:
    manifest = open_bundle("demo", verify="size").manifest
    sizes = {(side, side) for side in model.sides}
    return sizes <= set(manifest.resolutions) and model.batch_size <= manifest.max_batch


def _built_precision(target: str, precision: str) -> str:
    """Return what a bundle's name says of its precision: nothing where loading decides it."""
    decides = target in ENGINE_TARGETS and precision != "auto"
    return f"-{precision}" if decides else ""


def is_current(path: Path, sha256: str) -> bool:
    """Say whether a kept bundle was built from this checkpoint by this release."""
    try:
        manifest = open_bundle(path, verify="size").manifest
    except BundleError:
        return False
    return manifest.source.sha256 == sha256 and manifest.sdengine_version == __version__


def _build(model: Model, checkpoint: str, path: Path, target: str, precision: str) -> str:
    command = module_command("sdengine", "build", checkpoint, "--output", path)
    command += ["--target", target, "--resolutions", ",".join(map(str, model.sides))]
    command += ["--batch", str(model.batch_size), "--force", "--json", *model.flags]
    if _built_precision(target, precision):
        command += ["--precision", precision]
    if target == "torch" and not model.flags:
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
    model = Model.on_gpu(options.arch)
    targets = dict.fromkeys(("torch" if options.target == "triton" else options.target, "torch"))
    try:
        for target in targets:
            print(f"{target}: {bundle_of(model, target, options.cache, print).path}")
    except SdengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
