"""Ledger: the bytes that a request moves between the host and the GPU, exactly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from support import fake_tensorrt
from support.tiny_checkpoints import make_tiny

import sdengine
from sdengine import _native
from sdengine.bundle.reader import open_bundle

OPTIONS: dict[str, Any] = {"steps": 3, "seed": 7, "sampler": "euler", "width": 64, "height": 64}
PROMPT = "a large (red:1.2) circle"
BUILD: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "resolutions": (64,)}


class Queue(_native.Queue):
    """Counts what is copied, by direction and region."""

    moved: ClassVar[Counter[tuple[str, str]]] = Counter()

    def upload(self, set: str, region: str, array: np.ndarray[Any, Any]) -> None:
        self.moved["up", region] += array.nbytes
        super().upload(set, region, array)

    def download(self, set: str, region: str, array: np.ndarray[Any, Any]) -> None:
        self.moved["down", region] += array.nbytes
        super().download(set, region, array)


def of_text_encoders() -> dict[tuple[str, str], int]:
    return {key: count for key, count in Queue.moved.items() if key[1].startswith("text_encoder")}


@pytest.fixture(autouse=True)
def ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(_native, "Queue", Queue)
    Queue.moved.clear()


def test_text_encoders_hand_over_one_layer(tmp_path: Path) -> None:
    checkpoint = make_tiny("shallow-sdxl", tmp_path / "checkpoint")
    # The stand-in's runtime does not know bf16, which this autoencoder would get.
    sdengine.build(checkpoint, tmp_path / "bundle", precision="fp32", **BUILD)
    manifest = open_bundle(tmp_path / "bundle").manifest
    with sdengine.load(tmp_path / "bundle") as engine:
        first = engine.generate(PROMPT, "a star", **OPTIONS)
        rows, item_bytes = 2, 4
        expected = {}
        for encoder in manifest.architecture.text_encoders:
            embeds = rows * 77 * encoder.hidden_size * item_bytes
            name = encoder.network
            expected["up", f"{name}.inputs_embeds"] = embeds
            expected["up", f"{name}.eos_index"] = expected["up", f"{name}.layer"] = 8 * rows
            expected["down", f"{name}.states"] = embeds
            pooled = manifest.networks[name].outputs[-1].shape[1]
            expected["down", f"{name}.pooled"] = rows * int(pooled) * item_bytes
        assert of_text_encoders() == expected
        # The same prompts again move nothing.
        Queue.moved.clear()
        again = engine.generate(PROMPT, "a star", **OPTIONS)
        assert of_text_encoders() == {} and again.timings.text_encoder_calls == 0
        assert np.array_equal(again.arrays[0], first.arrays[0])
        # Of the U-Net it is what steps do not write themselves, once, and the latents at the end.
        assert not [region for way, region in Queue.moved if way == "down" and "unet" in region]


def test_bundles_whose_encoders_hand_over_all_layers_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases built them."""
    for name in ("new", "old"):
        if name == "old":
            monkeypatch.setattr(fake_tensorrt, "choose_layer", lambda *given: given)
        sdengine.build("demo", tmp_path / name, **BUILD)
    found = {}
    for name in ("new", "old"):
        Queue.moved.clear()
        with sdengine.load(tmp_path / name) as engine:
            picture = engine.generate(PROMPT, **OPTIONS, clip_skip=2).arrays[0]
        down = sum(count for (way, _), count in of_text_encoders().items() if way == "down")
        found[name] = (picture, down)
    assert np.array_equal(found["old"][0], found["new"][0])
    (encoder,) = open_bundle(tmp_path / "old").manifest.architecture.text_encoders
    layers = 2 * (encoder.num_layers + 1)
    embeds = 2 * 77 * encoder.hidden_size * 2
    assert found["old"][1] - found["new"][1] == (layers - 1) * embeds
