"""Variants of the demo model, built and asked: what they are told shows in their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sdengine
from sdengine.benchmarks.demo_variants import SIZE, depth, edges_followed, tiny_decoder
from sdengine.benchmarks.picture_tasks import recoloured, rest_is_equal
from sdengine.checkpoints import load_checkpoint
from sdengine.cli.main import main
from sdengine.training.scoring import score

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sdengine.Engine]:
    bundle = tmp_path_factory.mktemp("variants") / "bundle"
    sdengine.build("demo-inpainting", bundle, resolutions=[SIZE], batch=1)
    with sdengine.load(bundle) as loaded:
        yield loaded


def test_inpainting_with_nine_channels_gives_the_colour_asked_for(engine: sdengine.Engine) -> None:
    right = 0
    for i, (_, picture, wanted, text, mask) in enumerate(recoloured(4)):
        made = engine.generate(
            text, image=picture, mask=mask, mask_blur=2, strength=1.0, steps=8, seed=i
        ).arrays[0]
        right += score(made, wanted)["color"] == 1
        assert rest_is_equal(made, picture, mask)
        assert not np.array_equal(made, picture)
    assert right >= 3


def test_inspect_says_what_the_network_reads(
    engine: sdengine.Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(engine.bundle.root)]) == 0
    assert "task        inpainting: its U-Net reads a picture" in capsys.readouterr().out


def test_depth_says_what_lies_before_what(tmp_path: Path) -> None:
    sdengine.build("demo-depth", tmp_path / "bundle", resolutions=[SIZE], batch=1)
    with sdengine.load(tmp_path / "bundle") as engine:
        found, _ = depth(engine, 8)
    # Who saw only outlines would have 8 of the 16 right.
    assert found["order_right"] + found["exchanged_right"] >= 13
    assert found["overlap"] > 0.7 > 0.4 > found["overlap_with_another"]


def test_edges_say_where_objects_are(tmp_path: Path) -> None:
    sdengine.build(
        "demo", tmp_path / "bundle", resolutions=[SIZE], batch=1, controls={"edges": "demo-edges"}
    )
    with sdengine.load(tmp_path / "bundle") as engine:
        found, _ = edges_followed(engine, 3)
    assert found["1"]["f1"] > 0.75 > found["0.5"]["f1"] > found["0"]["f1"]


def test_the_tiny_decoder_shows_what_the_whole_one_shows(tmp_path: Path) -> None:
    source = load_checkpoint("demo", tiny_vae="demo-tiny")
    sdengine.build(source, tmp_path / "bundle", resolutions=[SIZE], batch=1)
    with sdengine.load(tmp_path / "bundle") as engine:
        found, _ = tiny_decoder(engine, 12)
    assert found["tiny"]["right"] >= found["vae"]["right"] - 1 >= 10
