"""Converter: any checkpoint into a diffusers folder, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdengine.checkpoints.checkpoint import Checkpoint
from sdengine.checkpoints.reader import PathLike, load_checkpoint
from sdengine.checkpoints.writer import Description, Part, Progress, write_checkpoint
from sdengine.errors import ConfigError
from sdengine.models.configs import ModelArchitecture
from sdengine.models.dtypes import TORCH_DTYPES


def convert(
    source: PathLike,
    folder: PathLike,
    *,
    dtype: str = "fp16",
    variant: str | None = None,
    base: PathLike | None = None,
    vae: PathLike | None = None,
    family: str | ModelArchitecture | None = None,
    prediction_type: str | None = None,
    scheduler: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint, usually a single file, as a folder that diffusers' pipelines load.

    Tensors are read and written one at a time, so that a file of any size takes little memory
    besides the system's cache.

    Args:
        source: what `load_checkpoint` opens.
        folder: the new folder; its parent must exist.
        dtype: of the weights: "fp16", "bf16" or "fp32".
        variant, base, vae, family, prediction_type, scheduler: see `load_checkpoint`.
        progress: called with a network's name, the tensors done and how many there are.

    Returns:
        The folder.

    Raises:
        CheckpointError: the checkpoint is damaged or of another kind, or a weight is not finite in
            this data type.
        ConfigError: an argument is invalid.
        OutputError: the folder exists already or cannot be written; nothing is left behind.
    """
    if dtype not in TORCH_DTYPES:
        raise ConfigError.for_field("dtype", dtype, ", ".join(TORCH_DTYPES))
    checkpoint = load_checkpoint(
        source,
        variant=variant,
        base=base,
        vae=vae,
        family=family,
        prediction_type=prediction_type,
        scheduler=scheduler,
    )
    parts = {name: part_of(checkpoint, name) for name in checkpoint.parts}
    description = description_of(checkpoint)
    return write_checkpoint(folder, parts, description, TORCH_DTYPES[dtype], progress)


def description_of(checkpoint: Checkpoint) -> Description:
    """Return what a checkpoint says besides its networks, to be written again.

    Raises:
        CheckpointError: its tokenizer is missing or damaged.
    """
    return Description(
        scheduler_config=checkpoint.scheduler_config,
        tokenizer_files=checkpoint.tokenizer_files(),
        pad_tokens=checkpoint.pad_tokens,
        defaults=checkpoint.defaults,
        zero_empty_negative=checkpoint.zero_empty_negative,
        requires_aesthetic_score=checkpoint.requires_aesthetic_score,
        prompt_lengths={part: checkpoint.prompt_length(part) for part in checkpoint.pad_tokens},
        resolutions=checkpoint.resolutions,
        batch=checkpoint.batch,
    )


def part_of(checkpoint: Checkpoint, name: str) -> Part:
    """Return one of a checkpoint's networks, to be written again tensor by tensor."""
    return Part(
        config=checkpoint.config(name).to_dict(),
        shapes=checkpoint.shapes(name),
        tensors=lambda: checkpoint.tensors(name),
    )
