"""Requests with ControlNets: what they cost, what they leave alone, every way to ask for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.controls import CANNY, Array, build_steered, calls, canny, edges, make_steered

import sdengine
from sdengine import Control
from sdengine.bundle.controls import control_network
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.errors import Cancelled, ConfigError
from sdengine.images.metadata import read_metadata
from sdengine.inputs.control_picture import control_pixels, resized_control
from sdengine.inputs.resize import nearest

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
UNTRAINED = control_network("untrained")
USUAL: dict[str, Any] = {
    "steps": 10, "guidance_scale": 4.0, "sampler": "euler", "schedule": "normal", "seed": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("canny", "untrained")
    folder = make_steered(tmp_path_factory.mktemp("controls"), "tiny", *names)
    return build_steered(folder, "torch", *names, batch=2)


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    with sdengine.load(bundle, precision="fp32") as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(engine: Engine) -> Array:
    found: Array = engine.generate(PROMPT, **USUAL).arrays[0]
    return found


def test_a_window_runs_the_network_in_it_alone(engine: Engine, plain: Array) -> None:
    result = engine.generate(PROMPT, **USUAL, controls=[canny(start=0.3, end=0.7)])
    assert (calls(result), result.timings.unet_calls) == (4, 10)
    assert not np.array_equal(result.arrays[0], plain)
    second = {**USUAL, "sampler": "heun", "steps": 5}  # evaluates all steps but the last twice
    result = engine.generate(PROMPT, **second, controls=[canny(end=0.5)])
    assert (calls(result), result.timings.unet_calls) == (4, 9)


def test_a_switched_off_control_neither_runs_nor_loads(bundle: Path, plain: Array) -> None:
    with sdengine.load(bundle, precision="fp32") as engine:
        for off in (canny(scale=0), canny(layer_weights=[0.0] * 13)):
            result = engine.generate(PROMPT, **USUAL, controls=[off])
            np.testing.assert_array_equal(result.arrays[0], plain)
            assert calls(result) == 0 and result.warnings == ()
        result = engine.generate(PROMPT, **USUAL, controls=[canny(start=0.52, end=0.58)])
        assert calls(result) == 0
        assert "control canny: it does nothing, because none of 10 eval" in result.warnings[0]
        assert CANNY not in engine._networks._loaded


def test_an_untrained_control_leaves_the_picture_as_it_is(engine: Engine, plain: Array) -> None:
    result = engine.generate(PROMPT, **USUAL, controls=[Control("untrained", edges())])
    assert calls(result, UNTRAINED) == 10
    np.testing.assert_array_equal(result.arrays[0], plain)


def test_layers_are_weighed_one_by_one(engine: Engine) -> None:
    def made(**fields: Any) -> Array:
        found: Array = engine.generate(PROMPT, **USUAL, controls=[canny(**fields)]).arrays[0]
        return found

    np.testing.assert_array_equal(made(layer_weights=[0.5] * 13), made(scale=0.5))
    soft = [0.825 ** (12 - i) for i in range(13)]
    np.testing.assert_array_equal(made(layer_weights=soft), made(mode="prompt"))
    assert not np.array_equal(made(layer_weights=[*soft[:-1], 0]), made(mode="prompt"))
    assert not np.array_equal(made(mode="prompt"), made(mode="control"))


def test_batches_editing_intervals_and_parts(engine: Engine) -> None:
    """Rows differ in number and in what they read; each image is what it is alone."""
    for fields in (
        {"guidance_interval": (0.2, 0.6)},
        {"prompt": "a [red:green:0.5] circle"},
        {"prompt": f"{PROMPT} AND a star:0.5"},
        {"guidance_scale": 1.0, "sampler": "euler_a"},
    ):
        for mode in ("balanced", "control"):
            given: dict[str, Any] = {
                "prompt": PROMPT, **USUAL, "steps": 5, **fields,
                "controls": [canny(mode=mode, end=0.8)],
            }  # fmt: skip
            batch = engine.generate(**given, batch_size=3)
            assert calls(batch) == 8  # of two images, and of one
            alone = engine.generate(**{**given, "seed": USUAL["seed"] + 2})
            assert np.abs(batch.arrays[2].astype(int) - alone.arrays[0]).max() <= 1
            without = engine.generate(**{**given, "controls": ()})
            assert not np.array_equal(without.arrays[0], batch.arrays[0])


def test_each_tile_is_steered_by_its_part(engine: Engine) -> None:
    given: dict[str, Any] = {**USUAL, "steps": 2, "width": 128, "tiled_diffusion": True}
    wide = edges(128)
    result = engine.generate(PROMPT, **given, controls=[canny(image=wide)])
    assert calls(result) == result.timings.stages["unet"].calls == 2 * 3
    halves = np.concatenate([wide[:, 64:], wide[:, :64]], axis=1)
    for other in (halves, wide[:, :64]):  # the second is stretched
        found = engine.generate(PROMPT, **given, controls=[canny(image=other)])
        assert not np.array_equal(found.arrays[0], result.arrays[0])
    untrained = engine.generate(PROMPT, **given, controls=[Control("untrained", wide)])
    without = engine.generate(PROMPT, **given)
    np.testing.assert_array_equal(untrained.arrays[0], without.arrays[0])


def test_pictures_of_controls_are_shifted_with_seamless_ones(engine: Engine) -> None:
    given: dict[str, Any] = {**USUAL, "steps": 2, "seamless": "xy"}
    result = engine.generate(PROMPT, **given, controls=[canny(mode="control")], batch_size=2)
    assert calls(result) == result.timings.unet_calls == 2
    alone = engine.generate(
        PROMPT, **{**given, "seed": USUAL["seed"] + 1}, controls=[canny(mode="control")]
    )
    assert np.abs(result.arrays[1].astype(int) - alone.arrays[0]).max() <= 1
    untrained, without = (
        engine.generate(PROMPT, **given, controls=controls)
        for controls in ([Control("untrained", edges())], ())
    )
    np.testing.assert_array_equal(untrained.arrays[0], without.arrays[0])


def test_an_untrained_controls_conditional_mode_is_no_guidance_of_its_own(
    engine: Engine, plain: Array
) -> None:
    control = Control("untrained", edges(), mode="guess")
    result = engine.generate(PROMPT, **USUAL, controls=[control])
    np.testing.assert_array_equal(result.arrays[0], plain)


def test_both_passes_are_steered(engine: Engine) -> None:
    usual = {**USUAL, "steps": 3}
    sides: dict[str, Any] = {"width": 64, "height": 64}
    found = engine.generate(
        PROMPT, **usual, **sides, hires=(128, 64), hires_upscaler="nearest", hires_steps=4,
        controls=[canny(end=0.5)],
    )  # fmt: skip
    assert calls(found) == 1 + 2  # of 3 and of 4 evaluations
    whole = canny()
    pixels = resized_control(control_pixels(whole.image), 128, 128, whole.resize)[32:96]
    cut = canny(image=pixels, end=0.5)
    half = engine.generate(PROMPT, **usual, **sides, controls=[canny(end=0.5)]).arrays[0]
    second = engine.generate(
        PROMPT, image=nearest(half, 128, 128)[32:96], strength=0.7, strength_rule="exact",
        **{**usual, "steps": 4}, controls=[cut],
    )  # fmt: skip
    np.testing.assert_array_equal(found.arrays[0], second.arrays[0])


def test_low_memory_frees_it_and_an_engine_warmed_up_has_it(bundle: Path, engine: Engine) -> None:
    wanted = engine.generate(PROMPT, **USUAL, controls=[canny()])
    with sdengine.load(bundle, precision="fp32", low_memory=True) as low:
        found = low.generate(PROMPT, **USUAL, controls=[canny()])
        assert CANNY not in low._networks._loaded
        np.testing.assert_array_equal(found.arrays[0], wanted.arrays[0])
    with sdengine.load(bundle, precision="fp32") as warm:
        warm.warm_up(controls=["canny"])
        assert warm.generate(PROMPT, **USUAL, controls=[canny()]).timings.load_ms == 0
        with pytest.raises(ConfigError, match=r"control\.network: 'pose'"):
            warm.warm_up(controls=["pose"])


def test_it_is_cancelled_within_a_step(engine: Engine) -> None:
    cancel, seen = threading.Event(), []

    def stop(step: Any) -> None:
        seen.append(step.index)
        if step.index == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        engine.generate(PROMPT, **USUAL, controls=[canny()], progress=stop, cancel=cancel)
    assert seen == [0, 1, 2]


def test_a_masked_area_is_steered_and_the_rest_stays(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (60, 60, 3), np.uint8)  # of a size that is padded
    mask = np.zeros((60, 60), np.uint8)
    mask[30:50, 10:40] = 255
    given: dict[str, Any] = {
        **USUAL, "steps": 4, "image": picture, "mask": mask, "mask_blur": 0.0, "strength": 0.9,
    }  # fmt: skip
    for area in ({"inpaint_area": "masked"}, {"width": 60, "height": 60}):
        steered, without = (
            engine.generate(PROMPT, **given, **area, controls=controls).arrays[0]
            for controls in ([canny(image=edges(60, 60), masked=True)], [])
        )
        assert (steered[mask == 0] == picture[mask == 0]).all()
        assert not np.array_equal(steered, without)


@pytest.mark.parametrize(
    ("controls", "told"),
    [
        ([Control("pose", edges())], "control.network: 'pose' .*one of the bundle's: canny, untr"),
        ([canny(layer_weights=[1.0] * 10)], r"control.layer_weights: .*13 of them"),
    ],
)
def test_what_the_bundle_does_not_have_is_named(
    engine: Engine, controls: list[Control], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        engine.generate(PROMPT, controls=controls)


def test_a_bundle_without_controls_says_how_to_build_one() -> None:
    with (
        sdengine.load("demo") as engine,
        pytest.raises(ConfigError, match=r"has none, and 'canny' .*--control canny=FOLDER"),
    ):
        engine.generate(PROMPT, controls=[canny()])


def test_a_picture_is_made_again_from_its_file(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(edges()).save("edges.png")
    Image.fromarray(edges()[::-1]).save("others.png")
    common = ["generate", "--bundle", str(bundle), "--precision", "fp32"]
    first = [PROMPT, "--steps", "4", "--seed", "3", "--control",
             "canny=edges.png,scale=0.8,end=0.75,mode=prompt"]  # fmt: skip
    assert main([*common, *first, "-o", "a.png"]) == 0
    assert main([*common, "--from", "a.png", "--control", "canny=edges.png", "-o", "b.png"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    (recorded,) = read_metadata("a.png").request_fields()["controls"]
    assert (recorded.scale, recorded.end, recorded.mode) == (0.8, 0.75, "prompt")
    assert main([*common, "--from", "a.png", "-o", "c.png"]) != 0
    assert "--control canny=FILE" in capsys.readouterr().err
    other = [*common, "--from", "a.png", "--control", "canny=others.png,end=1", "--json"]
    assert main([*other, "-o", "d.png"]) == 0
    told = capsys.readouterr()
    assert f"another picture, with SHA-256 {recorded.image.sha256}" in told.err
    assert json.loads(told.out)["controls"][0]["end"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.png", "b.png", "d.png", "edges.png", "others.png",
    ]  # fmt: skip
