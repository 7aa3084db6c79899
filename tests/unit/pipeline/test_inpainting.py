"""Inpainting with the demo model: what a mask keeps stays to the byte, what it frees changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sdengine
from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.images.metadata import read_metadata
from sdengine.pipeline import inpainting

PROMPT = "a large yellow circle on a blue background"
STEPS = 8
Pixels = NDArray[np.uint8]
FIELDS: dict[str, Any] = {"steps": STEPS, "strength": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def scene(engine: Engine) -> Pixels:
    result = engine.generate("a large red circle on a blue background", seed=7, steps=12)
    return result.arrays[0]


def square(first: int = 32, last: int = 96) -> Pixels:
    mask = np.zeros((128, 128), np.uint8)
    mask[first:last, first:last] = 255
    return mask


def middle(pixels: Pixels) -> NDArray[np.float64]:
    found: NDArray[np.float64] = pixels[56:72, 56:72].mean(axis=(0, 1))
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampler": "euler_a"},
        {"sampler": "heun", "schedule": "normal"},
        {"sampler": "lms"},
        {"mask_blend": "latents"},
        {"masked_content": "fill"},
        {"masked_content": "latent_noise", "strength": 1.0},
        {"masked_content": "latent_nothing", "strength": 1.0},
        {"inpaint_area": "masked"},
        {"soft_inpainting": True},
        {"color_correction": True},
        {"mask_blur": 0.0},
        {"encode": "sample"},
    ],
)
def test_the_outside_stays_to_the_byte(
    engine: Engine, scene: Pixels, fields: dict[str, Any]
) -> None:
    found = engine.generate(PROMPT, image=scene, mask=square(), **{**FIELDS, **fields}).arrays[0]
    kept = np.ones((128, 128), bool)
    kept[21:107, 21:107] = False  # as far as the blur reaches
    np.testing.assert_array_equal(found[kept], scene[kept])
    least = 90 if "color_correction" in fields else 130
    assert middle(scene)[1] < 60 and middle(found)[1] > least  # red became yellow


def test_five_times_over_the_outside_is_the_same(engine: Engine, scene: Pixels) -> None:
    found = scene
    for seed in range(5):
        found = engine.generate(
            PROMPT, image=found, mask=square(), **{**FIELDS, "seed": seed, "steps": 4}
        ).arrays[0]
    kept = np.ones((128, 128), bool)
    kept[21:107, 21:107] = False
    np.testing.assert_array_equal(found[kept], scene[kept])


def test_a_stroke_of_one_pixel_changes_something_and_a_blank_mask_nothing(
    engine: Engine, scene: Pixels
) -> None:
    mask = np.zeros((128, 128), np.uint8)
    blank = engine.generate(PROMPT, image=scene, mask=mask, **FIELDS).arrays[0]
    np.testing.assert_array_equal(blank, scene)
    with pytest.raises(ConfigError, match=r"^mask: nothing"):
        engine.generate(PROMPT, image=scene, mask=mask, inpaint_area="masked", **FIELDS)
    mask[40:90, 63] = 255
    found = engine.generate(PROMPT, image=scene, mask=mask, mask_blur=0, **FIELDS).arrays[0]
    changed = (found != scene).any(axis=2)
    assert changed[:, 63].any() and not np.delete(changed, 63, axis=1).any()


def test_black_may_change_if_asked(engine: Engine, scene: Pixels) -> None:
    usual = engine.generate(PROMPT, image=scene, mask=square(), **FIELDS).arrays[0]
    inverse = 255 - square()
    same = engine.generate(PROMPT, image=scene, mask=inverse, mask_invert=True, **FIELDS).arrays[0]
    np.testing.assert_array_equal(usual, same)


def test_a_part_comes_back_in_the_pictures_size(engine: Engine, scene: Pixels) -> None:
    wide = np.concatenate([scene, scene[:, ::-1], scene], axis=1)
    mask = np.zeros(wide.shape[:2], np.uint8)
    mask[40:90, 160:220] = 255
    result = engine.generate(PROMPT, image=wide, mask=mask, inpaint_area="masked", **FIELDS)
    assert (result.request.width, result.request.height) == (128, 128)
    found = result.arrays[0]
    assert found.shape == wide.shape
    np.testing.assert_array_equal(found[:, :140], wide[:, :140])
    np.testing.assert_array_equal(found[:, 250:], wide[:, 250:])
    assert (found != wide).any()
    sharp = engine.generate(
        PROMPT, image=wide, mask=mask, mask_blur=0, inpaint_area="masked", **FIELDS
    ).arrays[0]
    np.testing.assert_array_equal(sharp[mask == 0], wide[mask == 0])


def test_soft_inpainting_changes_more_where_it_is_lighter(engine: Engine, scene: Pixels) -> None:
    bands = np.repeat(np.linspace(0, 255, 8).astype(np.uint8), 16)
    mask = np.tile(bands, (128, 1))
    found = engine.generate(
        "a green background", image=scene, mask=mask, soft_inpainting=True,
        **{**FIELDS, "strength": 1.0, "steps": 16, "schedule": "normal"},
    ).arrays[0]  # fmt: skip
    rows = np.r_[0:24, 104:128]  # of the background alone
    change = np.abs(found[rows].astype(int) - scene[rows]).mean(axis=(0, 2)).reshape(8, 16).mean(1)
    assert change[0] == 0
    assert (np.diff(change) > -6).all() and change[-1] > 40


def test_any_size_keeps_its_bytes(engine: Engine, scene: Pixels) -> None:
    cut, mask = scene[:100, :75], square()[:100, :75]
    found = engine.generate(PROMPT, image=cut, mask=mask, mask_blur=0, **FIELDS).arrays[0]
    np.testing.assert_array_equal(found[mask == 0], cut[mask == 0])


def test_replay(engine: Engine, scene: Pixels, tmp_path: Any) -> None:
    result = engine.generate(PROMPT, image=scene, mask=square(), mask_blur=2, **FIELDS)
    (file,) = result.save(tmp_path / "a.png")
    fields = read_metadata(file).request_fields()
    assert not fields["mask"].is_given and fields["mask_blur"] == 2
    with pytest.raises(ConfigError, match=r"^mask: only the record"):
        engine.generate(**{**fields, "image": scene})
    again = engine.generate(**{**fields, "image": scene, "mask": square()})
    np.testing.assert_array_equal(again.arrays[0], result.arrays[0])


def test_a_mask_is_blurred_over_edges_that_meet() -> None:
    weights = np.zeros((24, 32), np.float32)
    weights[:, :9] = 1
    found = inpainting._blurred(weights, 2.0, "x")
    rolled = inpainting._blurred(np.roll(weights, 11, axis=1), 2.0, "x")
    np.testing.assert_array_equal(np.roll(found, 11, axis=1), rolled)
    assert 0 < found[5, -1] < 1 and found[5, -1] == pytest.approx(found[5, 9])
    assert not inpainting._blurred(weights, 2.0, "y")[5, -1]
    assert np.array_equal(inpainting._blurred(weights, 0.0, "xy"), weights)
