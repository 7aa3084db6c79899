"""What requests can ask beside one prompt: parts, edits, batches, previews, other U-Nets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import make_tiny_bundle

from sdengine.engine import Engine
from sdengine.errors import Cancelled, ConfigError, UnsupportedShapeError
from sdengine.images.result import Result, Step
from sdengine.loading import load
from sdengine.request.request import Request


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


def test_parts_joined_by_and_are_guided_together(engine: Engine) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 3, "sampler": "euler", "guidance_scale": 2.0}
    latents = {}
    for prompt in ("a circle", "b square", "a circle AND b square:0.5", ""):
        latents[prompt] = np.array(next(iter(engine.stream(prompt, **options))).latents)
    # The first Euler step is linear in the guided output u + 2 (a - u) + 2 * 0.5 (b - u).
    plain = latents[""]
    expected = plain + (latents["a circle"] - plain) + 0.5 * (latents["b square"] - plain)
    np.testing.assert_allclose(latents["a circle AND b square:0.5"], expected, atol=1e-4)
    assert not np.allclose(latents["a circle"], latents["b square"], atol=1e-3)


def test_and_without_guidance_still_uses_the_negative(engine: Engine) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 2, "guidance_scale": 1.0}
    images = [
        engine.generate("a AND b", negative, **options).arrays[0] for negative in ("x", "yyyy")
    ]
    assert not np.array_equal(images[0], images[1])


def test_edited_prompt_changes_at_its_step(engine: Engine) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 4, "sampler": "euler"}
    runs = {
        prompt: [np.array(step.latents) for step in engine.stream(prompt, **options)]
        for prompt in ("a circle", "[a circle:b square:2]")
    }
    same = [
        np.allclose(a, b, atol=1e-5)
        for a, b in zip(runs["a circle"], runs["[a circle:b square:2]"], strict=True)
    ]
    assert same == [True, True, False, False]


def test_different_prompts_and_seeds_in_one_call(engine: Engine) -> None:
    prompts, negatives, seeds = ["a circle", "b", "c AND d"], ["x", "y", "z"], [7, 3, 99]
    batch = engine.generate(prompts, negatives, seed=seeds, sampler="euler_a", steps=3)
    assert batch.seeds == tuple(seeds)
    for i in range(3):
        alone = engine.generate(prompts[i], negatives[i], seed=seeds[i], sampler="euler_a", steps=3)
        assert np.abs(batch.arrays[i].astype(int) - alone.arrays[0]).max() <= 1


def test_a_results_request_gives_the_same_images_again(engine: Engine) -> None:
    options: dict[str, Any] = {"batch_size": 3, "steps": 3, "sampler": "Euler a"}
    result = engine.generate("a [circle|square]", "x", variation_strength=0.3, **options)
    for again in (
        engine.run(result.request),
        engine.run(Request.from_json(result.request.to_json())),
        list(engine.stream(result.request))[-1].result,
    ):
        assert again is not None
        assert again.request == result.request
        assert all(map(np.array_equal, again.arrays, result.arrays))


def test_a_request_is_what_generate_runs(engine: Engine) -> None:
    request = engine.request("a circle", steps=3, sampler="DPM++ 2M Karras", seed=None)
    assert (request.width, request.height) == (64, 64)
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "karras")
    assert engine.generate("a circle", steps=3, seed=request.seed).request == request
    labelled = replace(request, sampler="Euler a", schedule="Karras")
    assert engine.run(labelled).request.sampler == "euler_a"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"width": 96}, UnsupportedShapeError),
        ({"sampler": "magic"}, ConfigError),
        ({"sampler": "ddim", "s_churn": 1.0}, ConfigError),
        ({"prompt": "word " * 10_000}, ConfigError),
        ({"clip_skip": 12}, ConfigError),
    ],
)
def test_a_request_that_the_bundle_cannot_serve_fails_before_any_work(
    engine: Engine, changes: dict[str, Any], error: type[ConfigError]
) -> None:
    request = Request(**{"prompt": "a", "width": 64, "height": 64, **changes})
    for serve in (engine.stream, engine.run):
        with pytest.raises(error):
            serve(request)


def test_prompts_are_for_generate(engine: Engine) -> None:
    with pytest.raises(ConfigError, match=r"expected a sdengine.Request. `generate` takes prompts"):
        engine.run("a circle")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give no others"):
        engine.stream(engine.request("a"), steps=3)  # type: ignore[call-overload]


def test_images_of_each_prompt(engine: Engine) -> None:
    result = engine.generate(["a", "b"], num_images_per_prompt=2, seed=5, num_inference_steps=2)
    assert result.request.prompts == ("a", "a", "b", "b")
    assert result.seeds == (5, 6, 7, 8)
    alone = engine.generate("b", seed=7, steps=2).arrays[0]
    assert np.abs(result.arrays[2].astype(int) - alone).max() <= 1


def test_previews(engine: Engine) -> None:
    steps = list(engine.stream("a circle", seed=1, steps=5, preview_every=2, batch_size=2))
    assert [step.preview is not None for step in steps] == [False, True, False, True, False]
    preview = steps[1].preview
    assert preview is not None
    assert preview.shape == (2, 64, 64, 3)
    assert preview.dtype == np.uint8
    plain = engine.generate("a circle", seed=1, steps=5, batch_size=2)
    result = steps[-1].result
    assert result is not None
    assert all(np.array_equal(a, b) for a, b in zip(result.arrays, plain.arrays, strict=True))


def test_last_preview_is_nearly_the_picture(engine: Engine) -> None:
    for step in engine.stream("a circle", seed=1, sampler="ddim", steps=8, preview_every=8):
        if step.preview is not None:
            preview = step.preview[0]
    assert step.result is not None
    assert np.abs(preview.astype(int) - step.result.arrays[0]).mean() < 2


def test_cancel_ends_within_one_step(engine: Engine) -> None:
    cancel = threading.Event()
    seen = []

    def stop(step: Step) -> None:
        seen.append(step.index)
        if step.index == 1:
            cancel.set()

    with pytest.raises(Cancelled):
        engine.generate("a circle", steps=100, cancel=cancel, progress=stop)
    assert seen == [0, 1]
    engine.generate("a circle", steps=1)


def test_cancelled_before_its_turn(engine: Engine) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Cancelled):
        engine.generate("a circle", cancel=cancel)


def test_async_requests_and_their_cancellation(engine: Engine) -> None:
    expected = [engine.generate("a circle", seed=seed, steps=2).arrays[0] for seed in range(3)]

    async def serve() -> list[Result]:
        tasks = [
            asyncio.create_task(engine.generate_async("a circle", seed=seed, steps=2))
            for seed in range(3)
        ]
        endless = asyncio.create_task(engine.generate_async("a circle", steps=1000))
        results = await asyncio.gather(*tasks)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return results

    for result, array in zip(asyncio.run(serve()), expected, strict=True):
        assert np.array_equal(result.arrays[0], array)


def test_async_reports_a_bad_request(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="steps"):
        asyncio.run(engine.generate_async("a circle", steps=0))


def test_equal_prompts_are_planned_once(engine: Engine) -> None:
    plans = [
        engine.plan(engine.request(prompt, steps=steps, seed=seed))
        for prompt, steps, seed in (("a [b|c]", 4, 1), ("a [b|c]", 4, 2), ("a [b|c]", 5, 1))
    ]
    assert plans[0].prompts is plans[1].prompts is not plans[2].prompts
    first, again = (engine.generate("a [b|c]", steps=3, seed=1).arrays[0] for _ in range(2))
    assert np.array_equal(first, again)


def test_two_engines_beside_each_other(tiny: Path, engine: Engine) -> None:
    expected = engine.generate("a circle", seed=1).arrays[0]
    with load(tiny, precision="fp32", threads=1) as other:
        steps = engine.stream("a circle", seed=1)
        next(steps)  # one engine in the middle of a request does not hold up the other
        assert np.array_equal(other.generate("a circle", seed=1).arrays[0], expected)


@pytest.mark.parametrize("kind", ["sdxl", "refiner", "lcm"])
def test_other_kinds_of_unet(tmp_path: Path, kind: str) -> None:
    with load(make_tiny_bundle(tmp_path / kind, kind=kind), precision="fp32") as engine:
        base: dict[str, Any] = {"seed": 1, "steps": 3, "guidance_scale": 3.0}
        image = engine.generate("a circle", **base).arrays[0]
        assert not np.array_equal(image, engine.generate("b", **base).arrays[0])
        changes: dict[str, Any] = {"guidance_scale": 5.0}
        if kind == "sdxl":
            changes |= {"original_size": (512, 512), "crop": (8, 64), "target_size": (32, 32)}
        if kind == "refiner":
            changes |= {"aesthetic_score": 60.0, "negative_aesthetic_score": 90.0}
        for name, value in changes.items():
            other = engine.generate("a circle", **{**base, name: value}).arrays[0]
            assert not np.array_equal(image, other), name


def test_distilled_unet_runs_without_the_unconditional_half(tmp_path: Path) -> None:
    with load(make_tiny_bundle(tmp_path / "lcm", kind="lcm"), precision="fp32") as engine:
        images = [
            engine.generate("a", negative, seed=1, guidance_scale=8.0).arrays[0]
            for negative in ("", "something else")
        ]
    assert np.array_equal(images[0], images[1])


def test_tags_of_other_networks_are_no_text_and_are_named(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    base: dict[str, Any] = {"seed": 1, "steps": 2, "guidance_scale": 3.0}
    plain = engine.generate("a circle, [b|c]", "d", **base)
    assert plain.warnings == ()
    with caplog.at_level("INFO", "sdengine"):
        tagged = engine.generate(
            "a circle<lora:[XL] style:1:0.5>, [b|c]<hypernet:x:1>", "d<LYCO:bad (v2)>", **base
        )
    assert np.array_equal(tagged.arrays[0], plain.arrays[0])
    assert [line.split("> ")[0] for line in tagged.warnings] == [
        "negative_prompt: <LYCO:bad (v2)",
        "prompt: <lora:[XL] style:1:0.5",
        "prompt: <hypernet:x:1",
    ]
    assert "<hypernet:x:1> is not applied" in caplog.text
    assert "<lora:" in str(tagged.request.prompt)  # the record is what was asked
    literal = engine.generate("a <lora:x:1>(b)", emphasis="literal", **base)
    expected = engine.generate("a (b)", emphasis="literal", **base)
    assert np.array_equal(literal.arrays[0], expected.arrays[0]) and literal.warnings
    other = engine.generate("a <3 lora:x> <lora> <b:c>", **base)
    assert other.warnings == ()
    hostile = engine.generate("".join(f"<lora:{i}\x1b:1>" for i in range(3000)), **base)
    assert len(hostile.warnings) == 21 and "and 2980 more" in hostile.warnings[-1]
    assert "\x1b" not in "".join(hostile.warnings)


def test_web_ui_clip_skip_counts_from_the_last_layer(tmp_path: Path, engine: Engine) -> None:
    """XL reads the last layer but one: 2 of the web UI, which is what it does by itself."""
    base: dict[str, Any] = {"seed": 1, "steps": 2, "guidance_scale": 3.0}
    with load(make_tiny_bundle(tmp_path / "xl", kind="sdxl"), precision="fp32") as xl:
        own = xl.generate("a circle", **base)
        for counted in (1, 2):
            asked = xl.generate("a circle", web_ui_clip_skip=counted, **base)
            assert np.array_equal(asked.arrays[0], own.arrays[0])
            assert "Clip skip: 2" in asked.parameters()
        assert xl.request("a", web_ui_clip_skip=3).clip_skip == 2
        with pytest.raises(ConfigError, match="web_ui_clip_skip, clip_skip: both"):
            xl.request("a", clip_skip=1, web_ui_clip_skip=1)
        with pytest.raises(ConfigError, match="web_ui_clip_skip: 13"):
            xl.request("a", web_ui_clip_skip=13)
    assert engine.request("a", web_ui_clip_skip=2).clip_skip == 1  # the tiny one is as XL too


def test_a_seed_of_minus_one_is_random_and_recorded(engine: Engine) -> None:
    drawn = [engine.request("a", seed=-1, batch_size=2) for _ in range(4)]
    assert len({one.seed for one in drawn}) > 1
    assert all(type(one.seed) is int and one.seed >= 0 for one in drawn)
    listed = engine.request("a", seed=[-1, 7, np.int64(-1)], variation_seed=-1)
    assert listed.seeds[1] == 7 and -1 not in (*listed.seeds, listed.variation_seed)
    result = engine.generate("a", seed=-1, steps=2)
    assert np.array_equal(engine.run(result.request).arrays[0], result.arrays[0])
    for wrong in (-2, True, "x"):
        with pytest.raises(ConfigError, match="seed"):
            engine.request("a", seed=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed: -1"):
        Request("a", seed=-1)  # a request says what will be made
