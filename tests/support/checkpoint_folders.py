"""Change the files of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Let a function change the tensors of a safetensors file."""
    state = load_file(path)
    edit(state)
    path.unlink()  # the tensors are mapped from the old file
    save_file(state, path)
