"""Turn a single-file checkpoint into a folder as diffusers writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from sdengine.checkpoints.folder import demo_tokenizer_dir
from sdengine.checkpoints.single_file import SingleFileCheckpoint
from sdengine.checkpoints.writer import save_checkpoint
from sdengine.errors import ConfigError

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "fp16",
    vae: str | os.PathLike[str] | None = None,
    family: str | None = None,
    prediction_type: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write a single file's networks as a folder; weights are mapped, and copied one by one.

    Args:
        source: a `.safetensors`, `.ckpt`, `.pt`, `.pth` or `.bin` file with the original names.
        folder: the new folder; its parent must exist.
        dtype: "fp16", "bf16" or "fp32".
        vae, family, prediction_type: as `SingleFileCheckpoint` takes them.
        progress: called before each network is written, with its name, how many are, and all.

    Raises:
        ConfigError: an argument is invalid.
        CheckpointError: the file is damaged or of another kind of model.
        OutputError: the folder exists already or cannot be written.
    """
    if dtype not in DTYPES:
        raise ConfigError.for_field("dtype", dtype, ", ".join(DTYPES))
    opened = SingleFileCheckpoint(
        Path(source), vae=vae, family=family, prediction_type=prediction_type
    )
    encoders = {part: opened.text_encoder(None, part) for part in opened.text_encoder_configs}
    return save_checkpoint(
        folder,
        unet=opened.unet(None),
        vae=opened.vae(None),
        text_encoder=encoders.get("text_encoder"),
        text_encoder_2=encoders.get("text_encoder_2"),
        tokenizer_dir=demo_tokenizer_dir(),
        scheduler_config=opened.scheduler_config,
        dtype=DTYPES[dtype],
        pad_tokens=opened.pad_tokens,
        requires_aesthetic_score=opened.requires_aesthetic_score,
        progress=progress,
    )
