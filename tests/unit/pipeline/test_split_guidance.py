"""Guidance rows split over two groups of processors: the same pictures, to the byte."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.adapters import make_demo_lora
from support.forked import status_of_child

import sdengine
from sdengine import Region
from sdengine.backends import get_backend
from sdengine.backends.base import SessionOptions
from sdengine.backends.native import packed_cache, split
from sdengine.backends.native.backend import NativeModule
from sdengine.backends.native.memory_limit import NativeBudget
from sdengine.backends.places import Place, find_places
from sdengine.backends.split_session import SplitModule, SplitSession
from sdengine.bundle.reader import open_bundle
from sdengine.engine import Engine
from sdengine.errors import Cancelled, ConfigError, DeviceError
from sdengine.machine import Processors

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="two processors cannot be had")
PLACES = "/".join(map(str, CPUS[:2]))
USUAL: dict[str, Any] = {"seed": 3, "steps": 3, "width": 64, "height": 64}
PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
MASK = np.pad(np.full((32, 32), 255, np.uint8), 16)
LEFT, RIGHT = Region((0, 0, 0.5, 1)), Region((0.5, 0, 1, 1))


@pytest.fixture(scope="module")
def whole() -> Iterator[Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def halves() -> Iterator[Engine]:
    with sdengine.load("demo", split_guidance=PLACES) as engine:
        yield engine


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say that the two places have memories of their own."""

    def found(option: str) -> tuple[Place, Place]:
        first, second = find_places(option)
        return replace(first, nodes=(0,)), replace(second, nodes=(1,))

    monkeypatch.setattr(split, "find_places", found)


def pictures(engine: Engine, prompt: str = "a red circle", **options: Any) -> list[bytes]:
    return [one.tobytes() for one in engine.generate(prompt, **{**USUAL, **options}).arrays]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a batch": {"batch_size": 3, "negative_prompt": "blue"},
    "without guidance": {"guidance_scale": 1.0},
    "a batch without guidance": {"guidance_scale": 1.0, "batch_size": 3},
    "an interval": {"guidance_interval": (0.3, 0.7), "steps": 5},
    "three rows": {"prompt": "a red circle AND a blue star"},
    "regions": {"prompt": "a red circle AND a blue star", "regions": [LEFT, RIGHT]},
    "rescaled": {"guidance_rescale": 0.7},
    "noise in steps": {"sampler": "euler_a"},
    "seamless": {"seamless": "xy"},
    "another size": {"width": 96},
    "chunks": {"prompt": "a red circle " * 40},
    "from a picture": {"image": PICTURE, "strength": 0.6},
    "a part": {"image": PICTURE, "mask": MASK},
    "two passes": {"hires": (96, 96)},
}


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_the_same_to_the_byte(whole: Engine, halves: Engine, case: str) -> None:
    found, wanted = pictures(halves, **CASES[case]), pictures(whole, **CASES[case])
    assert found == wanted


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_in_every_precision(precision: str) -> None:
    with sdengine.load("demo", precision=precision) as engine:
        wanted = pictures(engine)
    with sdengine.load("demo", precision=precision, split_guidance=PLACES) as engine:
        assert pictures(engine) == wanted


def test_the_halves_are_loaded_for_half_the_rows(halves: Engine) -> None:
    assert isinstance(halves.session, SplitSession)
    session: Any = halves.session
    pictures(halves)
    module: Any = halves._networks.get("unet", 2, 64, 64)
    assert isinstance(module, SplitModule)
    parts = [part for _, part in module._parts]
    assert [part.inputs[0].shape[0] for part in parts] == [1, 1]
    assert [half.session._threads for half in session._halves] == [1, 1]
    assert [half.session._place for half in session._halves] == PLACES.split("/")
    assert session._main._threads >= 2
    laid_out = {key[0] for key in session._main._laid_out}
    assert "vae_decoder" in laid_out and "unet" not in laid_out
    texts = halves._networks.get("text_encoder", 2, 64, 64)
    assert isinstance(texts, NativeModule)


def test_previews_show_the_same(whole: Engine, halves: Engine) -> None:
    def seen(engine: Engine) -> list[bytes]:
        steps = engine.stream("a star", preview_every=1, preview="vae", **USUAL)
        return [np.asarray(one.preview).tobytes() for one in steps if one.preview is not None]

    found = seen(halves)
    assert found == seen(whole) and len(found) > 1


@pytest.mark.parametrize("places", ["together", "apart"])
def test_weights_are_swapped_in_both(
    whole: Engine, tmp_path: Path, request: pytest.FixtureRequest, places: str
) -> None:
    if places == "apart":
        request.getfixturevalue("apart")
    lora = make_demo_lora(tmp_path / "style.safetensors", 1)
    changes: list[dict[str, Any]] = [{}, {"loras": {lora: 0.7}}, {"loras": {lora: -0.4}}, {}]
    with sdengine.load("demo", split_guidance=PLACES) as engine:
        found = [pictures(engine, **one) for one in changes]
    assert found == [pictures(whole, **one) for one in changes]
    assert found[0] != found[1] != found[2]


def weights_of(engine: Engine) -> list[dict[str, Any]]:
    module: Any = engine._networks.get("unet", 2, 64, 64)
    return [part._packed.tensors for _, part in module._parts]


@pytest.mark.usefixtures("apart")
def test_places_with_memories_have_copies_of_their_own(whole: Engine) -> None:
    with sdengine.load("demo", split_guidance=PLACES) as engine:
        assert pictures(engine) == pictures(whole)
        first, second = weights_of(engine)
        session: Any = engine.session
        assert [half.session._memory for half in session._halves] == ["0", "1"]
        assert first.keys() == second.keys() and len(first) > 10
        for name, tensor in first.items():
            assert np.array_equal(tensor, second[name]) and tensor.flags.aligned
            assert not np.shares_memory(tensor, second[name])
        other: Any = engine._networks.get("unet", 2, 96, 64)  # sizes share them
        assert [
            p._packed.tensors[n] is w[n]
            for (_, p), w in zip(other._parts, (first, second), strict=True)
            for n in w
        ]
        unet = sum(tensor.nbytes for tensor in first.values())
        del other
    del first, second, tensor
    gc.collect()
    assert not [key for key in packed_cache._open if key[1]] and unet


def test_places_of_one_memory_share_the_weights(halves: Engine) -> None:
    first, second = weights_of(halves)
    assert all(first[name] is second[name] for name in first)


def test_copies_are_counted() -> None:
    bundle = open_bundle("demo", verify="size")
    options = SessionOptions(precision="bf16", memory_bytes=1 << 40)
    one, two = (NativeBudget(bundle, options, "portable", copies) for copies in (1, 2))
    for alone, both in zip(one.needs, two.needs, strict=True):
        factors = {
            name: both.weight_bytes[name] / size for name, size in alone.weight_bytes.items()
        }
        assert factors.pop("unet") == 2 and set(factors.values()) == {1}


def test_a_request_is_cancelled_and_the_next_is_served(whole: Engine, halves: Engine) -> None:
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        halves.generate("a star", cancel=cancel, progress=lambda step: cancel.set(), **USUAL)
    assert pictures(halves) == pictures(whole)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_in_a_half_ends_the_request_alone(
    whole: Engine, halves: Engine, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    run = NativeModule.run
    calls: list[int] = []

    def sometimes(self: NativeModule, inputs: Any) -> Any:
        here = os.sched_getaffinity(0)
        if here == {CPUS[failing]}:
            calls.append(1)
            if len(calls) == 2:
                raise DeviceError("this half is gone")
        return run(self, inputs)

    monkeypatch.setattr(NativeModule, "run", sometimes)
    with pytest.raises(DeviceError, match="this half is gone"):
        pictures(halves)
    monkeypatch.undo()
    assert pictures(halves) == pictures(whole)


def test_close_ends_the_threads_and_a_child_goes_on(whole: Engine) -> None:
    def running() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("sdengine-")}

    before = running()
    engine = sdengine.load("demo", split_guidance=PLACES)
    wanted = pictures(whole)
    assert pictures(engine) == wanted
    assert running() >= {f"sdengine-{CPUS[0]}_0", f"sdengine-{CPUS[1]}_0"}

    def again() -> None:
        assert pictures(engine) == wanted

    assert status_of_child(again) == 0
    engine.close()
    engine.close()
    assert running() <= before
    with pytest.raises(DeviceError, match="closed"):
        pictures(engine)


@pytest.mark.parametrize(
    ("cpus", "threads", "usable", "wanted"),
    [
        ((4, 4), None, Processors(8), [4, 4]),
        ((4, 4), None, Processors(8, 3.0), [2, 1]),
        ((4, 4), None, Processors(8, 2.5), [2, 1]),
        ((4, 4), 5, Processors(8, 2.0), [3, 2]),
        ((1, 1), 8, Processors(8), [1, 1]),
        ((2, 6), None, Processors(8), [2, 4]),
    ],
)
def test_threads_are_shared_and_never_more_than_processors(
    monkeypatch: pytest.MonkeyPatch,
    cpus: tuple[int, int],
    threads: int | None,
    usable: Processors,
    wanted: list[int],
) -> None:
    monkeypatch.setattr(split, "usable_processors", lambda: usable)
    first, second = Place(tuple(range(cpus[0]))), Place(tuple(range(cpus[0], sum(cpus))))
    found = split._placements((first, second), threads)
    assert [placement.threads for _, placement in found] == wanted


def test_one_thread_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="threads: 1 is not accepted; expected 2 or more"):
        sdengine.load("demo", threads=1, split_guidance=PLACES)
    monkeypatch.setattr(split, "usable_processors", lambda: Processors(8, 0.5))
    with pytest.raises(ConfigError, match=r"split_guidance: .* 8 processors and 0\.5 of their"):
        sdengine.load("demo", split_guidance=PLACES)


@pytest.mark.parametrize("value", ["", "0", "0/0", 2, "99998/99999"])
def test_what_is_no_place_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="split_guidance: "):
        sdengine.load("demo", split_guidance=value)


@pytest.mark.parametrize("name", ["openvino", "torch", "torch-cuda", "triton"])
def test_other_backends_refuse_it(name: str) -> None:
    bundle = open_bundle("demo", verify="size")
    with pytest.raises(ConfigError, match=f"split_guidance: '0/1' .* None with backend {name}"):
        get_backend(name).open(bundle, SessionOptions(split_guidance="0/1"))


def test_options_that_do_not_go_with_it() -> None:
    with pytest.raises(ConfigError, match="device: 0 is not accepted"):
        sdengine.load("demo", device=0, split_guidance=PLACES)
    with pytest.raises(ConfigError, match="memory_bytes: 0 is not accepted"):
        sdengine.load("demo", memory_bytes=0, split_guidance=PLACES)


def test_with_low_memory_and_a_limit(whole: Engine) -> None:
    given: dict[str, Any] = {"low_memory": True, "memory_bytes": 1 << 33}
    with sdengine.load("demo", split_guidance=PLACES, **given) as engine:
        for _ in range(2):
            assert pictures(engine) == pictures(whole)


def test_two_engines_share_the_threads_of_places(whole: Engine, halves: Engine) -> None:
    """Each row runs on its place's pool, which one network has at a time."""
    wanted = pictures(whole)
    found: list[list[bytes]] = []

    def ask(engine: Engine) -> Callable[[], None]:
        return lambda: found.extend(pictures(engine) for _ in range(3))

    with sdengine.load("demo", split_guidance=PLACES) as other:
        asking = [threading.Thread(target=ask(one)) for one in (halves, other, whole)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert found == [wanted] * 9
