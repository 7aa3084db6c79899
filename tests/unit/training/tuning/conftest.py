"""Tiny checkpoints and pictures to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_checkpoints import make_tiny
from support.tuning import pictures

from sdengine.building import architecture
from sdengine.checkpoints import Checkpoint
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.tuning import texts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny-sdxl", tmp_path_factory.mktemp("sdxl") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module", autouse=True)
def _tokenizers_are_read_once() -> Iterator[None]:
    """Reading CLIP's vocabulary takes longer than a step of these models."""
    known: dict[tuple[Path, str], ClipTokenizer] = {}
    read = architecture.tokenizer_of

    def tokenizer_of(checkpoint: Checkpoint, part: str) -> ClipTokenizer:
        key = checkpoint.root, part
        if key not in known:
            known[key] = read(checkpoint, part)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (architecture, texts):
            patch.setattr(module, "tokenizer_of", tokenizer_of)
        yield
