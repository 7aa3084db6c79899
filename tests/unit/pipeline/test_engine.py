"""The engine on networks of a few operations, against the same line in NumPy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_bundle import SCALING_FACTOR, SCHEDULER, Array, make_tiny_bundle
from support.tiny_bundle import unet_reference as unet
from support.tiny_bundle import vae_decoder_reference as vae_decoder

import sdengine
from sdengine.bundle.manifest import MERGES_FILE, VOCAB_FILE
from sdengine.engine import Engine
from sdengine.errors import (
    BundleError,
    ConfigError,
    DeviceError,
    NonFiniteError,
    UnsupportedShapeError,
)
from sdengine.images.result import Step
from sdengine.loading import load
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.samplers import NoiseSchedule, build_program
from sdengine.samplers.noise import CpuGenerator


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    with load(tiny, precision="fp32", threads=1) as engine:
        yield engine


def token_ids(engine: Engine, text: str) -> list[int]:
    tokenizer = ClipTokenizer(engine.bundle.path(VOCAB_FILE), engine.bundle.path(MERGES_FILE))
    ids = [512, *tokenizer.encode(text), 513]
    return ids + [513] * (77 - len(ids))


def reference_image(
    engine: Engine, prompt: str, negative: str, seed: int, sampler: str, steps: int, scale: float
) -> Array:
    """Follow the pipeline in float64, one image, without its kernels and buffers."""
    ids = np.stack([token_ids(engine, text) for text in (negative, prompt)])
    encoder = engine.bundle.manifest.architecture.text_encoders[0]
    table = engine.bundle.token_table(encoder).astype(np.float64)
    embeds = table[ids] * 2  # state -2 of three, raw
    program = build_program(sampler, "karras", steps, NoiseSchedule.from_config(SCHEDULER))
    generator = CpuGenerator(seed)
    registers = np.zeros((program.b.shape[1], 4, 8, 8))
    registers[0] = program.init_scale * generator.randn((1, 4, 8, 8))[0]
    for k in range(len(program.t)):
        sample = np.stack([program.c_in[k] * registers[0]] * 2)
        uncond, cond = unet(sample, np.full(2, program.t[k]), embeds)
        noise_pred = uncond + scale * (cond - uncond) if scale > 1 else cond
        new = np.tensordot(program.A[k], registers, axes=1)
        new += np.multiply.outer(program.b[k], noise_pred)
        if program.needs_noise[k]:
            new += np.multiply.outer(program.d[k], generator.randn((1, 4, 8, 8))[0])
        registers = new
    image = vae_decoder(registers[:1] / SCALING_FACTOR)[0]
    pixels: Array = np.clip(image / 2 + 0.5, 0, 1) * 255
    pixels = pixels.transpose(1, 2, 0)
    return pixels


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_image_is_the_references(engine: Engine, sampler: str, scale: float) -> None:
    options: dict[str, Any] = {"sampler": sampler, "steps": 5, "guidance_scale": scale}
    options["schedule"] = "karras"
    result = engine.generate("a red circle", "blue", seed=3, **options)
    expected = reference_image(engine, "a red circle", "blue", 3, sampler, 5, scale)
    assert np.abs(result.arrays[0] - expected).max() <= 0.51 + 0.05  # rounding, fp32 networks


def test_batch_equals_its_images_alone(engine: Engine) -> None:
    batch = engine.generate("a circle", seed=10, batch_size=5, sampler="euler_a")
    assert batch.seeds == (10, 11, 12, 13, 14)
    for array, seed in zip(batch.arrays, batch.seeds, strict=True):
        alone = engine.generate("a circle", seed=seed, sampler="euler_a").arrays[0]
        assert np.abs(array.astype(int) - alone).max() <= 1
    assert batch.timings.unet_calls == 3 * 4  # chunks of 2, 2, 1
    assert batch.timings.vae_decoder_calls == 5


def test_same_request_gives_the_same_bytes(engine: Engine) -> None:
    first, second = (engine.generate("a circle", seed=5).arrays[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_every_input_matters(engine: Engine) -> None:
    base: dict[str, Any] = {"prompt": "a circle", "negative_prompt": "x", "seed": 5, "steps": 4}
    image = engine.generate(**base).arrays[0]
    changes = {
        "prompt": "a square",
        "negative_prompt": "y",
        "seed": 6,
        "steps": 5,
        "guidance_scale": 2.0,
        "sampler": "euler",
        "schedule": "normal",
    }
    for name, value in changes.items():
        assert not np.array_equal(image, engine.generate(**{**base, name: value}).arrays[0]), name


def test_defaults_are_the_bundles_and_are_recorded(engine: Engine) -> None:
    result = engine.generate("a circle", sampler="DPM++ 2M")
    request = result.request
    assert (request.width, request.height, request.steps) == (64, 64, 4)
    assert (request.sampler, request.schedule) == ("dpmpp_2m", "karras")
    assert result.seeds == (request.seed,)
    made = result.provenance
    assert made == engine.provenance
    assert (made.model, made.backend, made.precision) == ("tiny", "openvino", "fp32")
    assert result.arrays[0].shape == (64, 64, 3)


def test_other_size(engine: Engine) -> None:
    result = engine.generate("a circle", width=128, height=64, seed=1)
    assert result.arrays[0].shape == (64, 128, 3)
    assert result.images[0].size == (128, 64)


def test_steps_yield_progress_and_end_in_the_result(engine: Engine) -> None:
    steps = list(engine.stream("a circle", seed=1, batch_size=3, steps=4))
    assert [step.index for step in steps] == list(range(8))
    assert {step.total for step in steps} == {8}
    assert [step.result is None for step in steps] == [True] * 7 + [False]
    latents = steps[0].latents
    assert latents is not None and not latents.flags.writeable
    assert latents.shape == (2, 4, 8, 8)
    assert steps[0].timestep > steps[3].timestep


def test_timings_add_up(tiny: Path) -> None:
    with load(tiny, precision="fp32") as engine:
        first = engine.generate("a circle").timings
        second = engine.generate("a square").timings
    assert first.load_ms > 0
    assert second.load_ms == 0
    parts = second.text_encoder_ms + second.unet_ms + second.vae_decoder_ms + second.other_ms
    assert parts == pytest.approx(second.total_ms)
    assert (second.text_encoder_calls, second.unet_calls, second.vae_decoder_calls) == (1, 4, 1)


def test_prompts_of_an_earlier_request_are_not_encoded_again(tiny: Path) -> None:
    with load(tiny, precision="fp32") as engine:
        first = engine.generate("a (red:1.2) circle", seed=1)
        again = engine.generate("a (red:1.2) circle", seed=1, sampler="euler", width=128)
        same = engine.generate("a (red:1.2) circle", seed=1)
        assert [r.timings.text_encoder_calls for r in (first, again, same)] == [1, 0, 0]
        assert np.array_equal(same.arrays[0], first.arrays[0])
        others: tuple[tuple[str, dict[str, Any]], ...] = (
            ("a (red:1.3) circle", {}),
            ("a (red:1.2) circle", {"emphasis": "no_norm"}),
            ("a (red:1.2) circle", {"negative_prompt": "a square"}),
        )
        for prompt, options in others:
            other = engine.generate(prompt, seed=1, **options)
            assert other.timings.text_encoder_calls == 1
        engine.forget_prompts()
        assert engine.generate("a (red:1.2) circle", seed=1).timings.text_encoder_calls == 1


def test_time_that_the_caller_holds_is_not_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    now = [0]
    clock = SimpleNamespace(perf_counter_ns=lambda: now[0])
    monkeypatch.setattr("sdengine.pipeline.clock.time", clock)
    for step in engine.stream("a circle"):
        if step.result is None:
            now[0] += 10**12
    assert step.result is not None
    assert step.result.timings.total_ms == 0


def test_requests_at_the_same_time(engine: Engine) -> None:
    expected = {seed: engine.generate("a circle", seed=seed).arrays[0] for seed in range(4)}
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        for _ in range(5):
            found[seed] = engine.generate("a circle", seed=seed).arrays[0]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, array in expected.items():
        assert np.array_equal(found[seed], array)


def test_two_trajectories_in_turns(engine: Engine) -> None:
    expected = [engine.generate("a circle", seed=seed).arrays[0] for seed in (1, 2)]
    pairs = list(zip(*(engine.stream("a circle", seed=seed) for seed in (1, 2)), strict=True))
    for step, array in zip(pairs[-1], expected, strict=True):
        assert step.result is not None
        assert np.array_equal(step.result.arrays[0], array)


def test_abandoned_request_leaves_the_engine_usable(engine: Engine) -> None:
    def stop(step: Step) -> None:
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate("a circle", progress=stop)
    engine.generate("a circle", steps=1)


@pytest.mark.parametrize("network", ["text_encoder", "unet", "vae_decoder"])
def test_nan_names_the_network(tmp_path: Path, network: str) -> None:
    with (
        load(make_tiny_bundle(tmp_path / "tiny", broken=network), precision="fp32") as engine,
        pytest.raises(NonFiniteError, match=network),
    ):
        engine.generate("a circle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 96}, "nearest that it was built for is 64x64"),
        ({"width": 136}, "128x64"),
        ({"width": 100}, "multiple of 8"),
        ({"sampler": "magic"}, "sampler"),
        ({"schedule": "magic"}, "schedule"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"negative_prompt": "word " * 10_000}, "negative_prompt"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip_skip": 12}, "clip_skip"),
        ({"preview_every": -1}, "preview_every"),
        ({"sampler": "ddim", "s_churn": 1.0}, "s_churn"),
        ({"variation_strength": 7}, "variation_strength"),
    ],
)
def test_bad_request_fails_before_any_work(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.stream("a circle", **options)  # the call itself, before the first step


def test_size_error_has_its_own_type(engine: Engine) -> None:
    with pytest.raises(UnsupportedShapeError):
        engine.generate("a circle", height=128)


def test_prompt_of_several_chunks(engine: Engine) -> None:
    short = engine.generate("a", steps=1, seed=1).arrays[0]
    long = engine.generate("a" + " b" * 200, steps=1, seed=1).arrays[0]
    assert not np.array_equal(short, long)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp8"},
        {"precision": None},
        {"threads": 0},
        {"threads": True},
        {"threads": 10**9},
        {"threads": "2"},
        {"backend": "cuda"},
    ],
)
def test_bad_load_argument(tiny: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        load(tiny, **options)


def test_closed_engine(tiny: Path) -> None:
    engine = load(tiny)
    engine.generate("a circle", steps=1)
    engine.close()
    engine.close()
    with pytest.raises(DeviceError, match="closed"):
        engine.generate("a circle")


def test_foreign_unet_input(tmp_path: Path, tiny: Path) -> None:
    with load(tiny) as engine:
        networks = engine.bundle.manifest.model_dump()["networks"]
    networks["unet"]["files"] = networks["vae_decoder"]["files"]
    networks["unet"]["inputs"] = networks["vae_decoder"]["inputs"]
    foreign = make_tiny_bundle(tmp_path / "foreign", networks=networks)
    with (
        load(foreign) as engine,
        pytest.raises(BundleError, match="input 'latents' is unknown"),
    ):
        engine.generate("a circle")


def test_public_names() -> None:
    assert sdengine.load is load
    assert sdengine.Engine is Engine
    assert "load" in dir(sdengine)
    with pytest.raises(AttributeError, match="nothing_such"):
        sdengine.nothing_such  # noqa: B018
