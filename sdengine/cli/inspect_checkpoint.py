"""`sdengine inspect` of a checkpoint: what it is, what was assumed of it, what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.cli.terminal import say, say_json

if TYPE_CHECKING:
    from sdengine.checkpoints import Checkpoint

_LISTED = 8  # names of each kind of tensor that is left out
# What a U-Net is for, and what a request of it needs.
TASKS = {
    "inpainting": "inpainting: its U-Net reads a picture and a mask (--image, --mask, --outpaint)",
    "depth": "depth: its U-Net reads a depth map (--depth), which every request needs",
}


def is_checkpoint(place: str) -> bool:
    """Say whether a path is a checkpoint's, not a bundle's: a file, or a folder of diffusers.

    The demo model is there as both, its variants as checkpoints.
    """
    from sdengine.bundle.reader import DEMO_VARIANTS

    path = Path(place)
    if place in DEMO_VARIANTS and not path.exists():
        return True
    has_index = any((path / name).is_file() for name in ("model_index.json", "config.json"))
    return path.is_file() or (has_index and not (path / "manifest.json").exists())


def show_checkpoint(checkpoint: Checkpoint, as_json: bool) -> None:
    """Print what a checkpoint is; its weights are not read."""
    if as_json:
        say_json(_described(checkpoint))
    else:
        for line in _lines(checkpoint):
            say(line)


def _task(checkpoint: Checkpoint) -> str:
    from sdengine.bundle.architecture import task_of

    return task_of(checkpoint.unet_config.in_channels, checkpoint.vae_config.latent_channels)


def _described(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "name": checkpoint.name,
        "family": checkpoint.family,
        "task": _task(checkpoint),
        "scheduler": checkpoint.scheduler_config,
        "defaults": checkpoint.defaults,
        "networks": {part: checkpoint.config(part).to_dict() for part in checkpoint.parts},
        "guesses": [asdict(guess) for guess in checkpoint.guesses],
        "ignored": checkpoint.ignored,
    }


def _lines(checkpoint: Checkpoint) -> Iterator[str]:
    scheduler, vae = checkpoint.scheduler_config, checkpoint.vae_config
    side = checkpoint.unet_config.sample_size * vae.downscale
    yield f"name        {checkpoint.name}"
    yield f"family      {checkpoint.family}"
    yield f"networks    {', '.join(checkpoint.parts)}"
    if (task := _task(checkpoint)) in TASKS:
        yield f"task        {TASKS[task]}"
    yield f"size        {side}x{side}"
    yield f"predicts    {scheduler.get('prediction_type', 'epsilon')}"
    yield f"schedule    {scheduler.get('_class_name', 'of no name')}"
    yield f"latents     {vae.latent_channels} channels, scaling {vae.scaling_factor:g}"
    for guess in checkpoint.guesses:
        yield f"assumed     {guess.what} {guess.value}: {guess.reason} ({guess.option})"
    for line in checkpoint.not_taken_over:
        yield f"not taken   {line}"
    kinds: dict[str, list[str]] = {}
    for name, what in checkpoint.ignored.items():
        kinds.setdefault(what, []).append(name)
    for what, names in kinds.items():
        yield f"left out    {len(names)}, {what}"
        yield from (f"              {name}" for name in names[:_LISTED])
        if len(names) > _LISTED:
            yield f"              and {len(names) - _LISTED} more"
