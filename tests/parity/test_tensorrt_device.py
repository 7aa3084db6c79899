"""What a request does on the GPU: graphs, memory, turns, cancelling; on stand-ins for both."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_tensorrt

import sdengine
from sdengine.backends.base import SessionOptions
from sdengine.backends.tensorrt.backend import TensorRtRtxBackend
from sdengine.backends.tensorrt.session import TensorRtSession
from sdengine.bundle.reader import open_bundle
from sdengine.errors import Cancelled, ConfigError, DeviceError, NonFiniteError

OPTIONS: dict[str, Any] = {"steps": 6, "seed": 7, "sampler": "dpmpp_2m"}
PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake_tensorrt.install(monkeypatch)
        place = tmp_path_factory.mktemp("bundles") / "demo"
        options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"], "batch": 2}
        sdengine.build("demo", place, resolutions=(128, (192, 128)), **options)
        return place


@pytest.fixture
def engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sdengine.Engine]:
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle) as opened:
        yield opened


def arena_of(engine: sdengine.Engine) -> Any:
    session = engine.session
    assert isinstance(session, TensorRtSession)
    return session.arena


def picture(engine: sdengine.Engine, **options: Any) -> np.ndarray[Any, Any]:
    return engine.generate(PROMPT, **{**OPTIONS, **options}).arrays[0]


def test_a_step_is_one_launch_and_python_stays_out_of_it(engine: sdengine.Engine) -> None:
    first = engine.generate(PROMPT, **OPTIONS)
    (unet,) = fake_tensorrt.made("unet")
    # Once to let the engine settle, once to be captured.
    assert unet.enqueued == 2
    assert unet.runs == 1 + 6
    again = engine.generate(PROMPT, **OPTIONS)
    assert np.array_equal(again.arrays[0], first.arrays[0])
    # Other prompts, seeds, samplers, steps and guidance scales are the same graph.
    engine.generate("a star", seed=1, steps=9, sampler="euler_a", guidance_scale=2.0)
    assert unet.enqueued == 2
    assert unet.runs == 1 + 6 + 6 + 9
    assert again.timings.unet_calls == 6 and again.timings.load_ms == 0 < first.timings.load_ms


@pytest.mark.parametrize("batch", [1, 3])
def test_a_warm_engine_has_captured_what_requests_use(engine: sdengine.Engine, batch: int) -> None:
    engine.warm_up([(128, 128)], batch=batch)
    (unet,) = fake_tensorrt.made("unet")
    enqueued = unet.enqueued
    captured = 2 if batch == 3 else 1  # runs of two images and of one
    assert enqueued == captured * 2  # once to settle, once to be captured
    options = {**OPTIONS, "width": 128, "height": 128, "batch_size": batch}
    assert engine.generate(PROMPT, **options).timings.load_ms == 0
    assert unet.enqueued == enqueued


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 6),
        ({"steps": 1, "sampler": "euler"}, 1),
        ({"sampler": "heun"}, 2 * 6 - 1),  # all steps but the last one evaluate twice
        ({"batch_size": 3}, 2 * 6),  # runs of two images and of one
        ({"guidance_scale": 1.0}, 6),
        ({"prompt": "a [red:green:0.5] circle on a [blue|black] background"}, 6),
    ],
)
def test_launches_of_the_graph_are_counted_as_calls(
    engine: sdengine.Engine, options: dict[str, Any], calls: int
) -> None:
    given = {"prompt": PROMPT, **OPTIONS, **options}
    results = [engine.generate(**given)]  # captures
    (unet,) = fake_tensorrt.made("unet")
    for watched in (None, lambda step: None):
        enqueued, runs = unet.enqueued, unet.runs
        engine.forget_prompts()
        results.append(engine.generate(**given, progress=watched))
        assert unet.enqueued == enqueued  # nothing but launches
        assert unet.runs - runs == calls
    for result in results:
        timings = result.timings
        assert timings.unet_calls == calls and timings.unet_ms > 0
        assert timings.text_encoder_calls > 0 and timings.vae_decoder_calls > 0


def test_a_graph_for_each_size_batch_and_length(engine: sdengine.Engine) -> None:
    for options in ({}, {"width": 192, "height": 128}, {"batch_size": 2}, {"guidance_scale": 1.0}):
        picture(engine, **options)
        picture(engine, **options)
    engine.generate(", ".join([PROMPT] * 12), **OPTIONS)
    (unet,) = fake_tensorrt.made("unet")
    assert unet.enqueued == 5 * 2  # once to settle, once to be captured
    # All are kept, so that mixed requests find theirs again.
    for options in ({}, {"width": 192, "height": 128}, {"batch_size": 2}, {"guidance_scale": 1.0}):
        picture(engine, **options)
    assert unet.enqueued == 5 * 2 and len(unet.contexts) == 5


def test_shapes_are_forgotten_where_memory_is_short(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt.Engine, "context_bytes", 40 << 20)
    sizes: list[dict[str, Any]] = [{"width": 192, "height": 128}, {"batch_size": 2}, {}]
    with sdengine.load(bundle) as engine:
        expected = [picture(engine, **options) for options in sizes]
        most = max(size.planned_bytes(False) for size in engine.session.budget.needs)
    # The text encoder's, the decoder's of two sizes, and two of the U-Net.
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle, memory_bytes=most + (5 * 40 << 20)) as engine:
        for options, same in zip(sizes, expected, strict=True):
            assert np.array_equal(picture(engine, **options), same)
        gc.collect()
        (unet,) = fake_tensorrt.made("unet")
        assert len(unet.contexts) == 2  # the graphs are gone with their contexts
        picture(engine, **sizes[-1])
        picture(engine, **sizes[-2])
        assert unet.enqueued == 3 * 2


def test_the_gpu_that_was_asked_for_is_used(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(fake_tensorrt.Gpu, "names", ("NVIDIA L4", "NVIDIA L40S"))
    with sdengine.load(bundle) as engine:
        expected = picture(engine)
    with sdengine.load(bundle, device=1) as engine:
        assert np.array_equal(picture(engine), expected)
    assert fake_tensorrt.Gpu.opened == [0, 1]
    for wrong in (2, -1, True, "0"):
        with pytest.raises(ConfigError, match=r"device: .* expected 0 \(NVIDIA L4\), 1 \(NVIDIA L"):
            sdengine.load(bundle, device=wrong)  # type: ignore[arg-type]


def test_nothing_is_allocated_and_addresses_stay(engine: sdengine.Engine) -> None:
    picture(engine)
    arena = arena_of(engine)

    def addresses() -> dict[str, int]:
        return {
            f"{name}/{region}": arena.pool.address(name, region)
            for name, regions in arena.sets.items()
            for region in regions
        }

    before, allocations = addresses(), fake_tensorrt.Gpu.device.num_allocations
    assert allocations == 1
    for options in ({}, {"sampler": "euler_a"}, {"width": 192, "height": 128}, {"batch_size": 3}):
        picture(engine, **options)
    assert addresses() == before
    assert fake_tensorrt.Gpu.device.num_allocations == allocations


def test_networks_share_their_scratch(engine: sdengine.Engine) -> None:
    picture(engine)
    arena = arena_of(engine)
    for name, sizes in arena.sets.items():
        places = {
            network: (arena.pool.address(name, f"{network}.scratch"), sizes[f"{network}.scratch"])
            for network in ("text_encoder", "unet", "vae_decoder")
        }
        ranges = sorted((first, first + size) for first, size in places.values())
        assert all(left[1] > right[0] for left, right in itertools.pairwise(ranges))


def test_requests_that_take_turns_do_not_disturb_each_other(engine: sdengine.Engine) -> None:
    alone = [picture(engine), picture(engine, seed=8, sampler="euler_a")]
    wide = picture(engine, width=192, height=128)
    first = engine.stream(PROMPT, **OPTIONS)
    second = engine.stream(PROMPT, **{**OPTIONS, "seed": 8, "sampler": "euler_a"})
    for _ in range(3):
        next(first)
        next(second)
    assert np.array_equal(picture(engine, width=192, height=128), wide)
    pairs = list(zip(first, second, strict=True))
    for step, expected in zip(pairs[-1], alone, strict=True):
        assert step.result is not None and np.array_equal(step.result.arrays[0], expected)
    dropped = engine.stream(PROMPT, **OPTIONS)
    next(dropped)
    del dropped
    assert np.array_equal(picture(engine), alone[0])


def test_a_run_that_was_interrupted_goes_on_with_its_own_noise(engine: sdengine.Engine) -> None:
    options = {**OPTIONS, "sampler": "euler_a", "prompt": "a [red:green:0.5] circle"}
    alone = engine.generate(**options).arrays[0]
    steps = engine.stream(**options)
    latents = []
    for step in steps:
        latents.append(np.array(step.latents))
        engine.generate("a star", steps=1, seed=1)
        last = step
    assert last.result is not None and np.array_equal(last.result.arrays[0], alone)
    assert len(latents) == 6 and not np.array_equal(latents[0], latents[1])


def test_cancelling_ends_native_code_within_a_step(
    engine: sdengine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fake_tensorrt.Context._run
    cancel = threading.Event()
    cancelled_in = 0

    def slow(context: fake_tensorrt.Context) -> None:
        run(context)
        if context.engine.network == "unet" and context.engine.runs == cancelled_in:
            cancel.set()
            time.sleep(0.1)  # for the thread that passes it on

    # Captured operations hold the method that they were captured with.
    monkeypatch.setattr(fake_tensorrt.Context, "_run", slow)
    expected = picture(engine)
    (unet,) = fake_tensorrt.made("unet")
    started_with = unet.runs
    cancelled_in = started_with + 3
    with pytest.raises(Cancelled):
        picture(engine, cancel=cancel, steps=20)
    assert unet.runs - started_with <= 4
    assert np.array_equal(picture(engine), expected)


@pytest.mark.parametrize("network", ["unet", "vae_decoder"])
def test_what_is_not_finite_is_named(engine: sdengine.Engine, network: str) -> None:
    expected = picture(engine)
    (made,) = fake_tensorrt.made(network)
    made.gives_nan_in_run = made.runs + (3 if network == "unet" else 1)
    named = {"unet": "unet: evaluation 3 of 6", "vae_decoder": "vae_decoder: gave"}[network]
    with pytest.raises(NonFiniteError, match=rf"{named}.*NaN or infinity\. Try precision fp32"):
        picture(engine)
    assert np.array_equal(picture(engine), expected)


def test_engines_that_cannot_be_captured_are_queued_step_by_step(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle) as engine:
        expected = picture(engine)
    for says_so in (True, False):
        fake_tensorrt.install(monkeypatch)
        monkeypatch.setattr(fake_tensorrt.Engine, "capturable", False)
        if not says_so:  # as full TensorRT, where the capture fails
            monkeypatch.delattr(fake_tensorrt.Context, "is_stream_capturable")
        caplog.clear()
        with sdengine.load(bundle) as engine, caplog.at_level(logging.WARNING):
            assert np.array_equal(picture(engine), expected)
            assert np.array_equal(picture(engine), expected)
        (unet,) = fake_tensorrt.made("unet")
        assert unet.enqueued == (1 if says_so else 2) + 12 and unet.runs == 13
        (record,) = [r for r in caplog.records if "without a graph" in r.message]
        assert ("not capturable" if says_so else "did not run") in record.message


def test_low_memory_frees_what_a_request_is_done_with(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle) as engine:
        expected = picture(engine)
        assert [len(fake_tensorrt.made(n)) for n in ("text_encoder", "unet")] == [1, 1]
    fake_tensorrt.install(monkeypatch)
    most = 0

    def living() -> list[str]:
        gc.collect()
        found = [reference() for reference in opened]
        return [made.network for made in found if made is not None]

    opened: list[weakref.ref[fake_tensorrt.Engine]] = []
    make = fake_tensorrt.Engine.__init__

    def watched(made: fake_tensorrt.Engine, content: bytes) -> None:
        nonlocal most
        make(made, content)
        fake_tensorrt.Engine.made.clear()
        opened.append(weakref.ref(made))
        most = max(most, len(living()))

    monkeypatch.setattr(fake_tensorrt.Engine, "__init__", watched)
    with sdengine.load(bundle, low_memory=True) as engine:
        for _ in range(2):
            assert np.array_equal(picture(engine), expected)
            assert living() == []
        assert most == 1
        assert fake_tensorrt.Gpu.device.num_allocations == 1
    # Each once to be asked, then once a request; but the prompt is encoded once.
    assert len(opened) == 3 + 3 + 2


def test_engines_on_one_backend_share_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch)
    options: dict[str, Any] = {"target": "tensorrt-rtx", "gpus": ["rtx4090"]}
    sdengine.build("demo", tmp_path / "other", resolutions=(64,), **options)
    with sdengine.load(bundle) as alone:
        expected = picture(alone)
    backend = TensorRtRtxBackend()
    first = sdengine.Engine(open_bundle(bundle), backend)
    second = sdengine.Engine(
        open_bundle(tmp_path / "other"), backend, SessionOptions(low_memory=True)
    )
    assert np.array_equal(picture(first), expected)
    small = picture(second, width=64, height=64)
    assert list(arena_of(first).sets) == ["128x128", "192x128"]
    assert list(arena_of(second).sets) == ["64x64"]
    assert [budget.low_memory for budget in (first.session.budget, second.session.budget)] == [
        False,
        True,
    ]
    first.close()
    assert np.array_equal(picture(second, width=64, height=64), small)
    second.close()


def test_the_first_logger_outlives_its_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tensorrt.install(monkeypatch)
    with sdengine.load(bundle, low_memory=True) as engine:
        picture(engine)
    gc.collect()
    assert fake_tensorrt.Runtime.first_logger is not None
    with sdengine.load(bundle) as engine:  # refused by the stand-in if that logger is gone
        picture(engine)


def test_closing_frees_everything(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    engine = sdengine.load(bundle)
    picture(engine)
    arena = weakref.ref(arena_of(engine))
    engines = [weakref.ref(made) for made in fake_tensorrt.Engine.made]
    fake_tensorrt.Engine.made.clear()
    engine.close()
    engine.close()
    gc.collect()
    assert arena() is None and [reference() for reference in engines] == [None] * 3
    with pytest.raises(DeviceError, match="was closed"):
        picture(engine)
