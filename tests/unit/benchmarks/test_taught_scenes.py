"""Scenes that the demo model is taught: real ones are measured to be what they are."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from sdengine.benchmarks import taught_scenes as taught
from sdengine.training.scenes import (
    COLORS,
    TAUGHT_COLOR,
    TAUGHT_SHAPE,
    random_scene,
    render,
)
from sdengine.training.scoring import KNOWN, analyse, score
from sdengine.training.tuning.pictures import find_examples


@pytest.mark.parametrize("name", [TAUGHT_COLOR, TAUGHT_SHAPE])
def test_what_is_taught_is_told_from_what_is_known(name: str) -> None:
    rng, jitter = random.Random(0), np.random.default_rng(0)
    scenes = [taught.taught_scene(rng, name, held_out=True) for _ in range(30)]
    right = [taught.right(render(scene, jitter, size=taught.SIZE), scene) for scene, _ in scenes]
    assert np.mean(right) > 0.95
    assert all(name in text for _, text in scenes)
    known = [random_scene(rng) for _ in range(30)]
    pictures = [render(scene, jitter, size=taught.SIZE) for scene in known]
    pairs = [
        (taught.right(p, s), score(p, s)["all"] == 1) for p, s in zip(pictures, known, strict=True)
    ]
    assert np.mean([one == two for one, two in pairs]) > 0.97
    others = [taught.taught_scene(rng, name, held_out=True)[0] for _ in range(30)]
    assert not any(taught.right(p, s) for p, s in zip(pictures, others, strict=True))


def test_an_object_of_two_colours_has_their_mean() -> None:
    picture = np.full((128, 128, 3), 255, np.uint8)
    for columns, color in ((slice(40, 60), "blue"), (slice(60, 88), "purple")):
        picture[40:88, columns] = COLORS[color]
    for vocabulary, wanted in ((taught.TAUGHT, TAUGHT_COLOR), (KNOWN, "purple")):
        _, (region,) = analyse(picture, vocabulary)
        assert (region.color, region.shape) == (wanted, "square")
    picture[40:88, 40:88] = COLORS["blue"]
    assert analyse(picture, taught.TAUGHT)[1][0].color == "blue"


def test_a_subject_has_two_tones_and_its_class_has_not(tmp_path: Path) -> None:
    rng, jitter = random.Random(0), np.random.default_rng(0)
    drawn = [taught.draw_subject(rng, jitter) for _ in range(40)]
    scene = taught.subject_scene(rng, held_out=True)
    assert np.mean([taught.has_two_tones(picture, scene) for picture, _ in drawn]) > 0.95
    assert all(taught.SUBJECT in text and "red" not in text.split(",")[0] for _, text in drawn)
    plain = [render(taught.subject_scene(rng, held_out=True), jitter) for _ in range(40)]
    assert not any(taught.has_two_tones(picture, scene) for picture in plain)


def test_outlines_have_more_edges_and_are_written_with_their_captions(tmp_path: Path) -> None:
    rng, jitter = random.Random(0), np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(20)]
    plain = [render(scene, jitter, size=taught.SIZE) for scene in scenes]
    lined = [taught.outlined(p, s) for p, s in zip(plain, scenes, strict=True)]
    shares = [np.mean([taught.edge_pixels(p) for p in some]) for some in (plain, lined)]
    assert shares[1] > 1.4 * shares[0]
    taught.write_pictures(tmp_path / "data", 3, taught.draw_outlined)
    assert all(one.caption for one in find_examples(tmp_path / "data"))
    taught.draw_edges(tmp_path / "control", tmp_path / "hints", 2)
    assert all(one.hint for one in find_examples(tmp_path / "control", tmp_path / "hints"))
