"""Pictures to train on, and what tests of training share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdengine.training.tuning.options import OPTIONS, TuningOptions

SIZES = ((64, 64), (96, 64), (64, 96))
# Whatever a kind needs to be trained on `pictures` for two steps.
FEW: dict[str, dict[str, Any]] = {
    "embedding": {"vectors": 2, "templates": ("a picture of {name}",)},
    "lora": {"rank": 4, "alpha": 2.0, "conv_rank": 2, "text_encoder": True},
    "hypernetwork": {"activation": "relu", "hidden_dropout": 0.3, "learning_rate": 1e-3},
    "finetune": {"learning_rate": 1e-3},
    "dreambooth": {"learning_rate": 1e-3, "text_encoder": True},
    "controlnet": {"preprocessor": "canny", "learning_rate": 1e-3},
}
OUTPUTS = {
    "embedding": "thing.safetensors",
    "lora": "thing.safetensors",
    "hypernetwork": "thing.pt",
}


def pictures(
    folder: Path, sizes: Sequence[tuple[int, int]] = SIZES, *, captions: bool = True
) -> Path:
    """Fill a new folder with seeded pictures, each with a caption beside it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        blocks = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"a red circle, number {number}\n")
    return folder


def options(kind: str, **changes: Any) -> TuningOptions:
    """Return options of a short training of a kind."""
    few: dict[str, Any] = {"steps": 2, "batch": 2, "resolution": 64, **FEW[kind]}
    return OPTIONS[kind](**{**few, **changes})


def place(kind: str, folder: Path) -> Path:
    """Return where a training of a kind writes to."""
    return folder / OUTPUTS.get(kind, "thing")


def losses(run: Path) -> list[float]:
    """Return the losses that a run's log has."""
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
