"""Scenes, captions and the scorer: what is drawn is what is said is what is measured."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sdengine.training.captions import caption
from sdengine.training.scenes import (
    COLORS,
    PLACES,
    SHAPES,
    Scene,
    SceneObject,
    _single_scene,
    random_scene,
    render,
    signed_distance,
)
from sdengine.training.scoring import score, summarise


def single(color: str = "red", shape: str = "circle", place: str = "center") -> Scene:
    x, y = PLACES[place]
    return Scene("blue", (SceneObject(color, shape, "large", x, y, 0.235),), place, None)


@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("num_objects", [1, 2])
def test_real_pictures_score_full_marks(num_objects: int, size: int) -> None:
    rng, jitter = random.Random(1), np.random.default_rng(1)
    scenes = [random_scene(rng, num_objects=num_objects) for _ in range(60)]
    summary = summarise(score(render(s, jitter, size=size), s) for s in scenes)
    assert summary["all"] >= 98


@pytest.mark.parametrize(
    ("wrong", "aspect"),
    [
        (single(color="green"), "color"),
        (single(shape="star"), "shape"),
        (single(place="top left"), "place"),
    ],
)
def test_wrong_pictures_lose_the_aspect_that_is_wrong(wrong: Scene, aspect: str) -> None:
    marks = score(render(wrong, np.random.default_rng(0)), single())
    assert marks[aspect] == 0.0
    assert marks["all"] == 0.0
    assert marks["background"] == 1.0


def test_empty_and_crowded_pictures_fail_the_count() -> None:
    blank = np.full((128, 128, 3), COLORS["blue"], np.uint8)
    assert score(blank, single())["count"] == 0.0
    rng = random.Random(0)
    pair = random_scene(rng, num_objects=2)
    assert score(render(pair, np.random.default_rng(0)), single())["count"] == 0.0


def test_split_keeps_held_out_compositions_out_of_training() -> None:
    rng = random.Random(2)
    seen = {random_scene(rng).composition for _ in range(500)}
    held = {random_scene(rng, held_out=True).composition for _ in range(500)}
    assert not seen & held
    natural = [_single_scene(rng).held_out for _ in range(3000)]
    assert 0.07 < np.mean(natural) < 0.13


def test_window_is_a_part_of_the_whole_picture() -> None:
    scene = random_scene(random.Random(3))
    whole = render(scene, np.random.default_rng(7))
    part = render(scene, np.random.default_rng(7), window=(30, 50, 40))
    np.testing.assert_array_equal(part, whole[50:90, 30:70])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_inside_at_their_body_and_outside_far_away(shape: str) -> None:
    inside = 0.74 * 0.2 if shape == "ring" else 0.0
    x = np.array([inside, 0.9])
    distance = signed_distance(shape, x, np.zeros(2), 0.2)
    assert distance[0] < 0 < distance[1]


def test_captions_name_everything_that_is_asked_for() -> None:
    rng = random.Random(4)
    synonyms = {"circle": "disc", "square": "box", "ring": "donut", "cross": "plus"}
    synonyms["diamond"] = "rhombus"
    for _ in range(300):
        scene = random_scene(rng)
        text = caption(scene, rng)
        assert scene.background in text
        for thing in scene.objects:
            assert thing.color in text
            assert thing.shape in text or synonyms[thing.shape] in text
