"""Outpainting with the demo model: exact sizes, bytes that stay, no seams, tones without drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sdengine
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.inputs.outpaint import Sides, canvas

PROMPT = "a small red circle on a blue background"
STEPS = 8
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def scene(engine: Engine) -> Pixels:
    whole = engine.generate(PROMPT, seed=7, steps=12).arrays[0]
    return np.ascontiguousarray(whole[20:108, 16:112])  # 96 x 88, with the circle in it


def extend(engine: Engine, pixels: Pixels, sides: Any, **fields: Any) -> Pixels:
    chosen: dict[str, Any] = {"steps": STEPS, "seed": 3, **fields}
    return engine.generate(PROMPT, image=pixels, outpaint=sides, **chosen).arrays[0]


def inner(shape: tuple[int, ...], sides: dict[str, int], overlap: int = 0) -> tuple[slice, slice]:
    """Return where the picture lies in the result, without what a side's ramp reaches."""
    (top, bottom), (left, right) = (
        [(sides.get(name, 0) and sides[name] + overlap) for name in names]
        for names in (("top", "bottom"), ("left", "right"))
    )
    return slice(top, shape[0] - bottom), slice(left, shape[1] - right)


@pytest.mark.parametrize(
    "sides",
    [
        {"left": 32},
        {"top": 40},
        {"right": 32},
        {"bottom": 40},
        {"left": 13, "top": 27},
        {"left": 16, "top": 20, "right": 16, "bottom": 20},
    ],
    ids=str,
)
def test_each_side_grows_by_exactly_its_pixels(
    engine: Engine, scene: Pixels, sides: dict[str, int]
) -> None:
    found = extend(engine, scene, sides)
    height, width = scene.shape[:2]
    expected = (
        height + sides.get("top", 0) + sides.get("bottom", 0),
        width + sides.get("left", 0) + sides.get("right", 0),
        3,
    )
    assert found.shape == expected
    rows, columns = inner(found.shape, sides, overlap=16)
    place = np.full(expected, -1)
    own = inner(expected, sides)
    place[own] = scene
    np.testing.assert_array_equal(found[rows, columns], place[rows, columns])
    background = np.median(scene.reshape(-1, 3), axis=0)
    new = np.ones(expected[:2], bool)
    new[own] = False
    assert np.abs(found[new] - background).max(axis=1).mean() < 12
    assert (np.abs(found[new] - background).max(axis=1) < 40).mean() > 0.97
    for axis, side, at in (
        (1, "left", own[1].start), (0, "top", own[0].start),
        (1, "right", own[1].stop), (0, "bottom", own[0].stop),
    ):  # fmt: skip
        if side in sides:
            part = found[own[0]] if axis else found[:, own[1]]
            steps = np.abs(np.diff(part.astype(float), axis=axis)).mean(axis=(1 - axis, 2))
            inside = np.abs(np.diff(scene.astype(float), axis=axis)).mean(axis=(1 - axis, 2))
            assert steps[at - 2 : at + 1].max() < 0.6 * inside.max()


@pytest.mark.parametrize(
    "fields",
    [
        {"outpaint_fill": "mirror"},
        {"outpaint_fill": "blur"},
        {"outpaint_fill": "noise"},
        {"strength": 1.0},
        {"mask_blend": "latents"},
        {"inpaint_area": "masked", "mask_padding": 64},
        {"sampler": "euler_a"},
        {"encode": "sample"},
        {"outpaint_overlap": 0},
        {"outpaint_overlap": 8},
    ],
    ids=str,
)
def test_ways_to_extend(engine: Engine, scene: Pixels, fields: dict[str, Any]) -> None:
    found = extend(engine, scene, {"right": 32}, **fields)
    assert found.shape == (88, 128, 3)
    kept = 96 - fields.get("outpaint_overlap", 16)
    np.testing.assert_array_equal(found[:, :kept], scene[:, :kept])
    background = np.median(scene.reshape(-1, 3), axis=0)
    assert np.abs(found[:, 98:] - background).max(axis=2).mean() < 16


def test_repeated_extensions_do_not_drift(engine: Engine, scene: Pixels) -> None:
    tone = np.array([14, -14, 14])  # which the model itself would not choose
    for side, axis in (("left", 1), ("bottom", 0)):
        found = (scene[:, :64].astype(int) + tone).clip(0, 255).astype(np.uint8)
        background = np.median(found.reshape(-1, 3), axis=0)
        for seed in range(4):
            found = extend(engine, found, {side: 24}, seed=seed, steps=6)
            new = np.arange(24) if side == "left" else np.arange(-24, 0)
            strip = found.take(new, axis=axis)
            assert np.abs(strip.mean(axis=(0, 1)) - background).max() < 6, (side, seed)


def test_a_batch_is_its_images_and_a_replay_the_same(
    engine: Engine, scene: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {
        "image": scene, "outpaint": {"top": 8}, "outpaint_fill": "noise", "steps": 4,
    }  # fmt: skip
    batch = engine.generate(PROMPT, batch_size=2, seed=5, **fields)
    alone = engine.generate(PROMPT, seed=6, **fields)
    np.testing.assert_array_equal(batch.arrays[1], alone.arrays[0])

    from PIL import Image

    source, first, again = (str(tmp_path / f"{name}.png") for name in ("source", "first", "again"))
    Image.fromarray(scene).save(source)
    start = ["--image", source, "--steps", "4", "--seed", "6", "--outpaint", "left=5,top=8"]
    assert main(["generate", PROMPT, *start, "-o", first]) == 0
    assert main(["generate", "--from", first, "--image", source, "-o", again]) == 0
    assert Path(first).read_bytes() == Path(again).read_bytes()
    more = ["--from", first, "--image", source, "--outpaint", "all=4", "-o", again, "--overwrite"]
    assert main(["generate", *more]) == 0  # the recorded size was that of the recorded sides
    with Image.open(again) as extended:
        assert extended.size == (104, 96)
    capsys.readouterr()


def test_transparent_pixels_show_the_background(engine: Engine, scene: Pixels) -> None:
    clear = np.dstack([scene, np.zeros(scene.shape[:2], np.uint8)])
    found = extend(engine, clear, {"left": 8}, background="#0000ff", steps=2)
    np.testing.assert_array_equal(found[:, 24:], np.full((88, 80, 3), (0, 0, 255), np.uint8))


def test_it_is_inpainting_of_the_canvas(engine: Engine, scene: Pixels) -> None:
    sides = Sides(left=10, top=0, right=0, bottom=21)
    mask = np.full((109, 106), 255, np.uint8)
    mask[:88, 10:] = 0
    fields: dict[str, Any] = {"strength": 0.9, "steps": 4, "seed": 3}
    by_hand = engine.generate(
        PROMPT, image=canvas(scene, sides, "blur"), mask=mask, mask_blur=0, **fields
    ).arrays[0]
    found = extend(engine, scene, sides, outpaint_fill="blur", outpaint_overlap=0, **fields)
    np.testing.assert_array_equal(found, by_hand)
