"""Two passes with the demo model: what runs, what the second starts from, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sdengine
from sdengine.cli.main import main
from sdengine.engine import Engine
from sdengine.errors import Cancelled, ConfigError, UnsupportedShapeError
from sdengine.inputs.resize import nearest, resized
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.hires import enlarged
from sdengine.pipeline.loaded_networks import WeightedNetworks
from sdengine.request.hires_fields import LATENT_UPSCALERS

PROMPT = "a large red circle on a blue background"
FIELDS: dict[str, Any] = {"width": 64, "height": 64, "seed": 5, "steps": 4}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.mark.parametrize(
    ("upscaler", "size", "strength"),
    [("lanczos", (128, 128), 0.4), ("nearest", (96, 96), 0.7), ("lanczos", (100, 75), 0.5)],
)
def test_by_pixels_it_is_two_requests(
    engine: Engine, upscaler: str, size: tuple[int, int], strength: float
) -> None:
    found = engine.generate(
        PROMPT, hires=size, hires_upscaler=upscaler, hires_strength=strength, hires_steps=3,
        batch_size=2, **FIELDS,
    )  # fmt: skip
    first = engine.generate(PROMPT, batch_size=2, **FIELDS)
    for index in range(2):
        sampling = nearest if upscaler == "nearest" else None
        picture = resized(first.arrays[index], *size, "crop", sampling)
        second = engine.generate(
            PROMPT, image=picture, strength=strength, strength_rule="exact",
            **{**FIELDS, "width": size[0], "height": size[1], "steps": 3, "seed": 5 + index},
        )  # fmt: skip
        np.testing.assert_array_equal(found.arrays[index], second.arrays[0])


def test_a_second_pass_has_its_own_sampler_and_prompts(engine: Engine) -> None:
    own: dict[str, Any] = {"sampler": "euler_a", "schedule": "beta"}
    found = engine.generate(
        [PROMPT, "a green star"], "blurred", hires=(96, 96), hires_upscaler="lanczos",
        hires_strength=0.6, hires_sampler="Euler a", hires_schedule="Beta", eta=0.0,
        hires_prompt=["a small blue star", "a red ring"], hires_negative_prompt="", sampler="ddim",
        **FIELDS,
    )  # fmt: skip
    assert (found.request.hires_sampler, found.request.hires_schedule) == ("euler_a", "beta")
    first = engine.generate(
        [PROMPT, "a green star"], "blurred", sampler="ddim", schedule=found.request.schedule,
        eta=0.0, **FIELDS,
    )  # fmt: skip
    for index, prompt in enumerate(("a small blue star", "a red ring")):
        second = engine.generate(
            prompt, image=resized(first.arrays[index], 96, 96, "crop"), strength=0.6,
            strength_rule="exact", eta=0.0, **own,
            **{**FIELDS, "width": 96, "height": 96, "seed": 5 + index},
        )  # fmt: skip
        np.testing.assert_array_equal(found.arrays[index], second.arrays[0])
    each: dict[str, Any] = {"num_images_per_prompt": 2, "hires_prompt": ["c", "d"]}
    twice = engine.request(["a", "b"], hires=2, **each)
    assert twice.hires_prompt == ("c", "c", "d", "d")
    again = engine.run(found.request.only(1))
    np.testing.assert_array_equal(again.arrays[0], found.arrays[1])


def test_options_of_the_first_sampler_alone_do_not_hold_for_the_second(engine: Engine) -> None:
    usual: dict[str, Any] = {**FIELDS, "sampler": "euler_a", "hires": 1.5, "steps": 2}
    found = engine.generate(PROMPT, eta=0.5, hires_sampler="DPM++ 2M SGM Uniform", **usual)
    named = found.request.hires_sampler, found.request.hires_schedule
    assert named == ("dpmpp_2m", "sgm_uniform")
    with pytest.raises(ConfigError, match=r"^hires_sampler: 'best' .*euler"):
        engine.generate(PROMPT, hires_sampler="best", **usual)
    with pytest.raises(ConfigError, match=r"^hires_schedule: 'own' "):
        engine.generate(PROMPT, hires_schedule="own", **usual)
    with pytest.raises(ConfigError, match=r"^hires_prompt: 2 values for 3"):
        engine.generate(PROMPT, hires_prompt=["a", "b"], batch_size=3, **usual)


@pytest.mark.parametrize("upscaler", LATENT_UPSCALERS)
def test_latents_are_enlarged_and_not_decoded(engine: Engine, upscaler: str) -> None:
    seen: list[tuple[int, int]] = []
    result = engine.generate(
        PROMPT, hires=2, hires_upscaler=upscaler, hires_steps=6, sampler="euler_a", **FIELDS,
        progress=lambda step: seen.append((step.index, step.total)),
    )  # fmt: skip
    assert seen == [(k, 10) for k in range(10)]
    calls = {name: stage.calls for name, stage in result.timings.stages.items()}
    assert calls["unet"] == 10 and calls["vae_decoder"] == 1 and calls["upscale"] == 1
    assert "vae_encoder" not in calls
    assert result.arrays[0].shape == (128, 128, 3) and not result.warnings
    assert abs(result.arrays[0][64, 64].astype(int) - (220, 40, 40)).max() < 60  # still red
    assert result.request.hires_steps == 6


@pytest.mark.parametrize("upscaler", [*LATENT_UPSCALERS, "lanczos", "nearest"])
def test_what_is_enlarged_of_a_seamless_picture_knows_no_edges(upscaler: str) -> None:
    """Latents that are shifted around give the same start of a second pass, shifted."""
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    with sdengine.load("demo", precision="fp32", threads=1) as exact:
        networks, clock = WeightedNetworks(exact._networks), StageClock()
        request = exact.request(PROMPT, hires=2.0, hires_upscaler=upscaler, seamless="xy")
        (plain,), (found,) = (
            enlarged(request, [one], (256, 256), networks, clock)
            for one in (latents, np.roll(latents, (4, 6), (2, 3)))
        )
    wanted = np.roll(plain, (8, 12), (2, 3))
    # By pixels, one that rounds the other way is all that may differ.
    most = 1e-6 if upscaler in LATENT_UPSCALERS else 0.02
    assert np.abs(found - wanted).max() < most * np.abs(wanted).max()


@pytest.mark.parametrize("strength", [0.3, 0.72, 1.0])
@pytest.mark.parametrize("steps", [0, 7])
def test_exactly_the_steps_asked_for(engine: Engine, strength: float, steps: int) -> None:
    seen: list[float] = []
    for step in engine.stream(
        PROMPT, hires=1.5, hires_steps=steps, hires_strength=strength, sampler="euler",
        schedule="normal", **FIELDS,
    ):  # fmt: skip
        seen.append(step.timestep)
        assert step.latents is not None
        assert step.latents.shape[2:] == ((8, 8) if step.index < 4 else (12, 12))
    assert len(seen) == 4 + (steps or 4)
    assert seen[4] < 1000 * strength + 1  # where the second pass starts


def test_covered_sizes_lose_as_much_on_both_sides(engine: Engine) -> None:
    wide = engine.generate(PROMPT, **{**FIELDS, "width": 128, "steps": 8}, hires="96x96")
    assert wide.arrays[0].shape == (96, 96, 3)
    red = wide.arrays[0][..., 0].astype(float).mean(axis=0) > 120
    assert red.any() and abs(int(np.flatnonzero(red).mean()) - 48) < 12


def test_low_strength_of_latents_is_warned_of(engine: Engine) -> None:
    usual: dict[str, Any] = {"hires": 2, "hires_strength": 0.4, **FIELDS, "steps": 2}
    (warning,) = engine.generate(PROMPT, **usual).warnings
    assert warning.startswith("hires_strength: at 0.4")
    assert not engine.generate(PROMPT, hires_upscaler="lanczos", **usual).warnings


def test_a_batch_is_its_images(engine: Engine) -> None:
    six = engine.generate(PROMPT, hires=1.5, batch_size=6, **FIELDS)  # two chunks
    assert six.timings.stages["unet"].calls == 16
    alone = engine.generate(PROMPT, hires=1.5, **{**FIELDS, "seed": 10})
    np.testing.assert_array_equal(six.arrays[5], alone.arrays[0])


def test_prompts_change_in_each_pass(engine: Engine) -> None:
    texts = {"a": "[a red circle:a blue star:0.5]", "b": "[a red circle:a blue star:2]"}
    both = {
        name: engine.generate(text, hires=1.5, hires_steps=8, **FIELDS).arrays[0]
        for name, text in texts.items()
    }
    assert (both["a"] != both["b"]).any()  # half of 8 steps, and 2 of them


def test_low_memory_gives_the_same(engine: Engine) -> None:
    with sdengine.load("demo", low_memory=True) as other:
        fields: dict[str, Any] = {"hires": 1.5, "hires_upscaler": "lanczos", **FIELDS}
        np.testing.assert_array_equal(
            other.generate(PROMPT, **fields).arrays[0], engine.generate(PROMPT, **fields).arrays[0]
        )


@pytest.mark.parametrize("at", [3, 5])
def test_cancelled_in_either_pass(engine: Engine, at: int) -> None:
    cancel, seen = threading.Event(), []

    def progress(step: Any) -> None:
        seen.append(step.index)
        if step.index == at:
            cancel.set()

    with pytest.raises(Cancelled):
        engine.generate(PROMPT, hires=1.5, cancel=cancel, progress=progress, **FIELDS)
    assert seen == list(range(at + 1))
    assert engine.generate(PROMPT, **FIELDS).arrays[0].shape == (64, 64, 3)


def test_previews_are_of_both_passes(engine: Engine) -> None:
    steps = list(engine.stream(PROMPT, hires=2, preview_every=2, **FIELDS))
    shown = [step.preview for step in steps if step.preview is not None]
    assert len(shown) == 4 and all(one.shape[0] == 1 for one in shown)
    assert steps[-1].result is not None and steps[3].result is None


def test_sizes_are_checked_before_any_work(engine: Engine, tmp_path: Path) -> None:
    from support.tiny_bundle import make_tiny_bundle

    with pytest.raises(UnsupportedShapeError, match=r"^hires: 83x83 .*multiples of 32"):
        engine.generate(PROMPT, hires=1.3, **FIELDS)
    with sdengine.load(make_tiny_bundle(tmp_path / "tiny")) as fixed:
        width, height = fixed.bundle.manifest.resolutions[0]
        with pytest.raises(UnsupportedShapeError, match=r"^hires: .*not built for"):
            fixed.generate("a", width=width, height=height, hires=7)
        with pytest.raises(ConfigError, match=r"^hires_upscaler: .*no VAE encoder"):
            fixed.generate("a", width=width, height=height, hires=7, hires_upscaler="lanczos")


def test_the_second_size_counts_for_memory(engine: Engine) -> None:
    asked: list[tuple[int, int]] = []
    check = engine.session.budget.check
    engine.session.budget.check = lambda *asks: asked.append(asks[:2])  # type: ignore[method-assign]
    try:
        engine.generate(PROMPT, hires=1.5, **{**FIELDS, "steps": 1})
    finally:
        engine.session.budget.check = check  # type: ignore[method-assign]
    assert asked == [(64, 64), (96, 96)]


def test_the_command_and_its_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    options = ["--hires", "2x", "--hires-steps", "3", "--steps", "3", "--seed", "1"]
    options += [
        "--width",
        "64",
        "--height",
        "64",
        "--hires-sampler",
        "euler",
        "--hires-prompt",
        "b",
    ]
    assert main(["generate", PROMPT, *options, "-o", str(first)]) == 0
    assert main(["generate", "--from", str(first), "-o", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    with Image.open(first) as image:
        assert image.size == (128, 128)
        shown = image.info["parameters"]
    assert "Size: 64x64" in shown and "Hires upscale: 2, Hires steps: 3" in shown
    assert "Hires sampler: Euler, Hires schedule type: Karras, Hires prompt: b" in shown
    assert main(["generate", PROMPT, "--hires", "huge", "-o", str(tmp_path / "b.png")]) == 2
    assert "hires: 'huge'" in capsys.readouterr().err
