"""Bundles of a growth, with seeded ControlNets, and its LoRAs: made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdengine.benchmarks.bundles import (
    Progress,
    is_current,
    make_folder,
    run_build,
    synthetic_checkpoint,
)
from sdengine.benchmarks.modules import module_command


def growth_bundle(
    arch: str,
    backend: str,
    cache: Path,
    progress: Progress,
    *,
    sides: Sequence[int],
    batch: int,
    controls: Sequence[str] = (),
) -> str:
    """Return the place of a bundle, built where the cache has none of this release.

    Args:
        arch: a key of NATIVE_SIDES.
        backend: that runs it.
        cache: folder of earlier builds; it is made when missing.
        progress: told what is going on.
        sides: in pixels that it holds.
        batch: pictures of one run.
        controls: names of seeded ControlNets that it holds.
    """
    if (arch, backend) == ("demo", "native") and not controls:
        return "demo"  # the one in the package, which has these sides and this batch
    from sdengine.benchmarks.seeded_controlnets import write_controlnet
    from sdengine.checkpoints import load_checkpoint

    make_folder(cache)
    made = "demo" if arch == "demo" else str(synthetic_checkpoint(arch, cache, progress))
    progress("reading the checkpoint")
    checkpoint = load_checkpoint(made)
    steered = "-controls" if controls else ""
    path = cache / f"growth-{arch}-{backend}{steered}-{'-'.join(map(str, sides))}-batch{batch}"
    if is_current(path, checkpoint.sha256):
        return str(path)
    command = module_command("sdengine", "build", made, "--output", path, "--target", backend)
    command += ["--resolutions", ",".join(map(str, sides)), "--batch", str(batch)]
    command += ["--force", "--json"]
    for seed, name in enumerate(controls, start=1):
        folder = cache / f"growth-{arch}-{name}"
        if not (folder / "config.json").exists():
            progress(f"writing the ControlNet {name}")
            write_controlnet(folder, checkpoint.unet_config, seed)
        command += ["--control", f"{name}={folder}"]
    progress(f"building {arch} for {backend}")
    run_build(command, path)
    return str(path)


def growth_loras(arch: str, bundle: str, cache: Path, count: int, progress: Progress) -> list[str]:
    """Return files of LoRAs of rank 32 for all layers that are usually trained; see `make_lora`."""
    from sdengine.benchmarks.swap import make_lora
    from sdengine.bundle.reader import open_bundle

    make_folder(cache)
    paths = [cache / f"growth-{arch}-lora{number}.safetensors" for number in range(count)]
    opened = open_bundle(bundle, verify="size")
    for seed, path in enumerate(paths):
        if not path.exists():
            progress(f"writing LoRA {seed + 1} of {count}")
            part = path.with_suffix(".part")
            make_lora(opened, part, seed)
            part.replace(path)
    return [str(path) for path in paths]
