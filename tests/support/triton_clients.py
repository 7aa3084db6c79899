"""Clients of Triton Inference Server: what they send a model of the demo, and are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support.triton_server import TritonError

from sdengine.serving.triton_repository import Export, export_triton

STEPS = 3
RED, STAR = "a large red circle on a blue background", "a green star left of a pink heart on white"
PICTURE = np.arange(128 * 192 * 3, dtype=np.uint32).astype(np.uint8).reshape(128, 192, 3)
MASK = np.zeros((128, 192), np.uint8)
MASK[:, 96:] = 255


def exported(folder: Path, **options: Any) -> Path:
    return export_triton("demo", folder, Export(**options))


def one(prompt: str, seed: int = 0, steps: int = STEPS, **more: Any) -> dict[str, Any]:
    """Return a request of one picture in a batch."""
    given = {"PROMPT": prompt, "SEED": seed, "STEPS": steps, **more}
    return {name: v if isinstance(v, np.ndarray) else [[v]] for name, v in given.items()}


def message(answer: Any) -> tuple[str, str]:
    assert isinstance(answer, TritonError)
    return answer.code(), answer.message()
