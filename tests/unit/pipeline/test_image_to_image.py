"""Image to image with the demo model: sizes, strength, batches, replay, and what is refused."""

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
from sdengine.errors import ConfigError
from sdengine.images.metadata import read_metadata
from sdengine.images.result import Result

PROMPT = "a large yellow circle on a green background"
STEPS = 4


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def scene(engine: Engine) -> Result:
    return engine.generate("a large red circle on a blue background", seed=7, steps=12)


def distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_more_strength_changes_more(engine: Engine, scene: Result) -> None:
    found = [
        distance(
            engine.generate(
                PROMPT, image=scene.images[0], strength=s, seed=3, steps=20, schedule="normal"
            ).arrays[0],
            scene.arrays[0],
        )
        for s in (0.1, 0.3, 0.6, 0.9)
    ]
    assert found == sorted(found) and found[0] < 15 and found[-1] > 40


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m", "heun", "lms", "unipc", "pndm"])
def test_only_the_last_steps_run(engine: Engine, scene: Result, sampler: str) -> None:
    seen: list[int] = []
    result = engine.generate(
        PROMPT,
        image=scene.arrays[0],
        strength=0.5,
        steps=6,
        sampler=sampler,
        seed=1,
        progress=lambda step: seen.append(step.total),
    )
    wanted = {"heun": 5, "pndm": 4}.get(sampler, 3)
    assert seen == [wanted] * wanted
    assert result.timings.stages["unet"].calls == wanted


def test_a_batch_is_its_images(engine: Engine, scene: Result) -> None:
    for encode in ("mean", "sample"):
        fields: dict[str, Any] = {
            "image": scene.arrays[0], "strength": 0.5, "steps": STEPS, "encode": encode,
            "sampler": "euler_a",
        }  # fmt: skip
        batch = engine.generate(PROMPT, batch_size=2, seed=5, **fields)
        alone = engine.generate(PROMPT, seed=6, **fields)
        np.testing.assert_array_equal(batch.arrays[1], alone.arrays[0])


def test_the_mean_needs_no_luck_and_the_sample_is_drawn(engine: Engine, scene: Result) -> None:
    fields: dict[str, Any] = {"image": scene.arrays[0], "strength": 0.25, "steps": STEPS}
    mean = engine.generate(PROMPT, seed=5, **fields).arrays[0]
    sample = engine.generate(PROMPT, seed=5, encode="sample", **fields).arrays[0]
    assert distance(mean, sample) > 0


def test_any_size_comes_back_at_that_size(engine: Engine, scene: Result) -> None:
    cut = scene.arrays[0][:100, :75]
    result = engine.generate(PROMPT, image=cut, strength=0.25, steps=STEPS, seed=1)
    assert result.arrays[0].shape == (100, 75, 3)
    assert (result.request.width, result.request.height) == (75, 100)
    other = engine.generate(
        PROMPT, image=cut, strength=0.25, steps=STEPS, seed=1, width=130, height=66, resize="crop"
    )
    assert other.arrays[0].shape == (66, 130, 3)


@pytest.mark.parametrize("resize", ["stretch", "crop", "fill", "latent"])
def test_resize_modes_give_the_size(engine: Engine, scene: Result, resize: str) -> None:
    result = engine.generate(
        PROMPT, image=scene.arrays[0][:96], strength=0.25, steps=STEPS, seed=1, width=192,
        height=128, resize=resize,
    )  # fmt: skip
    assert result.arrays[0].shape == (128, 192, 3)


def test_transparent_pixels_show_the_background(engine: Engine, scene: Result) -> None:
    clear = np.dstack([scene.arrays[0], np.zeros((128, 128), np.uint8)])
    fields: dict[str, Any] = {"strength": 0.25, "steps": STEPS, "seed": 1}
    on_blue = engine.generate(PROMPT, image=clear, background="#0000ff", **fields).arrays[0]
    plain = np.zeros_like(scene.arrays[0])
    plain[...] = (0, 0, 255)
    expected = engine.generate(PROMPT, image=plain, **fields).arrays[0]
    np.testing.assert_array_equal(on_blue, expected)


def test_colour_correction_keeps_mean_and_contrast(engine: Engine, scene: Result) -> None:
    fields: dict[str, Any] = {
        "image": scene.arrays[0], "strength": 0.75, "steps": STEPS, "seed": 1,
    }  # fmt: skip
    drifted = engine.generate(PROMPT, **fields).arrays[0].reshape(-1, 3)
    result = engine.generate(PROMPT, color_correction=True, **fields).arrays[0].reshape(-1, 3)
    wanted = scene.arrays[0].reshape(-1, 3)
    assert (
        np.abs(result.mean(0) - wanted.mean(0)).max()
        < 0.5 * np.abs(drifted.mean(0) - wanted.mean(0)).max()
    )


def test_replay_needs_the_picture_and_gives_the_same_bytes(
    scene: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = scene.save(tmp_path / "source.png")
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    start = ["--image", str(source), "--strength", "0.5", "--steps", str(STEPS), "--seed", "3"]
    assert main(["generate", PROMPT, *start, "-o", str(first)]) == 0
    recorded = read_metadata(first)
    assert recorded.fields["image"].sha256 and not recorded.fields["image"].is_given
    assert main(["generate", "--from", str(first), "-o", str(again)]) == 2
    assert "give the picture itself" in capsys.readouterr().err.lower()
    assert not again.exists()
    assert main(["generate", "--from", str(first), "--image", str(source), "-o", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    capsys.readouterr()
    other = ["--from", str(first), "--image", str(first), "-o", str(tmp_path / "other.png")]
    assert main(["generate", *other]) == 0
    assert "another picture" in capsys.readouterr().err


def test_the_web_uis_text_has_the_strength(scene: Result, engine: Engine) -> None:
    result = engine.generate(PROMPT, image=scene.arrays[0], strength=0.5, steps=STEPS, seed=1)
    assert "Denoising strength: 0.5" in result.parameters()


def test_a_bundle_without_an_encoder_says_so(tmp_path: Path, scene: Result) -> None:
    from support.tiny_bundle import make_tiny_bundle

    with sdengine.load(make_tiny_bundle(tmp_path / "tiny")) as engine:  # noqa: SIM117
        with pytest.raises(ConfigError, match=r"^image: the bundle has no VAE encoder"):
            engine.generate("a", image=scene.arrays[0][:64, :64])
