"""A textual inversion on the demo model: the vectors of known words are those words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import sdengine
from sdengine.bundle.reader import open_bundle
from sdengine.prompt.planner import PromptPlanner


def test_vectors_of_known_words_give_their_picture(tmp_path: Path) -> None:
    bundle = open_bundle("demo")
    (encoder,) = bundle.manifest.architecture.text_encoders
    tokenizer = PromptPlanner.from_bundle(bundle).tokenizers[encoder.network]
    table = bundle.token_table(encoder)
    words = tokenizer.encode("red circle")
    save_file({"emb_params": np.array(table[words])}, tmp_path / "my-shape.safetensors")
    with sdengine.load("demo", threads=2, embeddings=tmp_path) as engine:
        options: dict[str, Any] = {"seed": 7, "steps": 3, "width": 128, "height": 128}
        expected = engine.generate("a (red circle:1.2) on white", "blue", **options)
        found = engine.generate("a (My-Shape:1.2) on white", "blue", **options)
        np.testing.assert_array_equal(found.arrays[0], expected.arrays[0])
        assert found.timings.load_ms == 0
        plain = engine.generate("a (my-shape:1.2) on white", "blue", embeddings=[], **options)
        assert not np.array_equal(plain.arrays[0], expected.arrays[0])
    with pytest.raises(sdengine.ConfigError, match=r"read \[n,128\] for text_encoder"):
        wide = tmp_path / "wide.safetensors"
        save_file({"emb_params": np.ones((1, 768), np.float32)}, wide)
        sdengine.load("demo", embeddings=wide)
