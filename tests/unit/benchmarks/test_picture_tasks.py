"""Seams of outpainted pictures: what counts as one, and what is an object's own outline."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sdengine.benchmarks.picture_tasks import EXTENDED, SIZE, border_steps, is_seamless, outlines
from sdengine.training.scenes import Image, Scene, random_scene, render

OWN = np.s_[EXTENDED : SIZE - EXTENDED, EXTENDED : SIZE - EXTENDED]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, Image]]:
    rng, jitter = random.Random(0), np.random.default_rng(0)
    scenes = [random_scene(rng, num_objects=1) for _ in range(20)]
    return [(scene, render(scene, jitter, size=SIZE)) for scene in scenes]


def test_scenes_as_drawn_have_no_seam_beside_outlines(drawn: list[tuple[Scene, Image]]) -> None:
    for scene, picture in drawn:
        assert is_seamless(picture, picture[OWN], np.ma.mean, outlines(scene))
        assert is_seamless(picture, picture[OWN], np.ma.median)


def test_a_slight_change_of_tone_at_one_border_is_a_seam(drawn: list[tuple[Scene, Image]]) -> None:
    for i, (scene, picture) in enumerate(drawn):
        changed = picture.astype(int)
        edge: list[slice | tuple[slice, slice]]
        edge = [np.s_[:EXTENDED], np.s_[-EXTENDED:], np.s_[:, :EXTENDED], np.s_[:, -EXTENDED:]]
        changed[edge[i % 4]] += np.where(picture[0, 0] < 128, 4, -4)
        result = changed.clip(0, 255).astype(np.uint8)
        assert not is_seamless(result, picture[OWN], np.ma.mean, outlines(scene))


def test_outlines_cover_where_an_object_ends_and_little_else(
    drawn: list[tuple[Scene, Image]],
) -> None:
    for scene, picture in drawn:
        near = outlines(scene)
        steps = np.abs(np.diff(picture.astype(int), axis=0)).max(axis=2) > 8
        assert near[1:][steps].all() and steps.any()
        assert not near[0].all() and near.mean() < 0.4


def test_the_step_over_each_border_is_of_its_own_side(drawn: list[tuple[Scene, Image]]) -> None:
    flat = np.full((SIZE, SIZE, 3), 100, np.uint8)
    assert set(border_steps(flat).values()) == {0}
    outer = {
        "left": np.s_[:, :EXTENDED],
        "top": np.s_[:EXTENDED],
        "right": np.s_[:, -EXTENDED:],
        "bottom": np.s_[-EXTENDED:],
    }
    for side, part in outer.items():
        changed = flat.copy()
        changed[part] += 7
        assert border_steps(changed) == dict.fromkeys(outer, 0) | {side: 7}
    changed = flat.copy()
    changed[: EXTENDED - 1] += 7  # a line farther out, which is another border
    assert set(border_steps(changed).values()) == {0}
