"""An engine's methods called from its own callbacks and threads: none of them hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sdengine
from sdengine.engine import Engine
from sdengine.errors import DeviceError
from sdengine.images.result import Result, Step

pytestmark = pytest.mark.timeout(60)
OPTIONS: dict[str, Any] = {"steps": 2, "seed": 1}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with sdengine.load("demo", threads=1) as engine:
        yield engine


def array(result: Result | None) -> bytes:
    assert result is not None
    return result.arrays[0].tobytes()


CALLS: dict[str, Callable[[Engine], Result | None]] = {
    "generate": lambda engine: engine.generate("a blue ring", **OPTIONS),
    "run": lambda engine: engine.run(engine.request("a blue ring", **OPTIONS)),
    "stream": lambda engine: list(engine.stream("a blue ring", **OPTIONS))[-1].result,
    "async": lambda engine: asyncio.run(engine.generate_async("a blue ring", **OPTIONS)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_request_inside_a_request(engine: Engine, call: str, is_async: bool) -> None:
    outer = array(engine.generate("a red circle", **OPTIONS))
    inner = array(engine.generate("a blue ring", **OPTIONS))
    found: list[bytes] = []

    def nest(step: Step) -> None:
        found.append(array(CALLS[call](engine)))

    if is_async:  # `progress` is called by the engine's own thread
        made = asyncio.run(engine.generate_async("a red circle", progress=nest, **OPTIONS))
    else:
        made = engine.generate("a red circle", progress=nest, **OPTIONS)
    assert found == [inner, inner]
    assert array(made) == outer


def test_warm_up_inside_a_request(engine: Engine) -> None:
    engine.generate("a", progress=lambda step: engine.warm_up([(192, 192)]), **OPTIONS)
    assert engine.generate("a", width=192, height=192, steps=1).timings.load_ms == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_close_inside_a_request_takes_effect_after_it(engine: Engine, is_async: bool) -> None:
    wanted = array(engine.generate("a", **OPTIONS))

    def close(step: Step) -> None:
        engine.close()
        engine.close()

    if is_async:
        made = asyncio.run(engine.generate_async("a", progress=close, **OPTIONS))
    else:
        made = engine.generate("a", progress=close, **OPTIONS)
    assert array(made) == wanted
    for call in CALLS.values():
        with pytest.raises(DeviceError, match="closed"):
            call(engine)


def test_close_between_the_steps_of_a_stream_ends_it(engine: Engine) -> None:
    steps = engine.stream("a", **OPTIONS)
    next(steps)
    engine.close()
    with pytest.raises(DeviceError, match="closed"):
        next(steps)


def test_close_of_another_thread_waits_for_the_request(engine: Engine) -> None:
    threads: list[threading.Thread] = []

    def close(step: Step) -> None:
        thread = threading.Thread(target=engine.close)
        thread.start()
        threads.append(thread)

    assert engine.generate("a", progress=close, **OPTIONS).arrays
    for thread in threads:
        thread.join()
    with pytest.raises(DeviceError, match="closed"):
        engine.generate("a")


def test_a_look_changes_nothing() -> None:
    """Previews leave the image as it is, to the bit, though other code guides their predictions."""
    fields: dict[str, Any] = {"steps": 4, "seed": 3, "width": 64, "height": 64, "sampler": "pndm"}
    with sdengine.load("demo", precision="fp32", threads=1) as engine:
        plain = array(engine.generate("a red circle", **fields))
        for every in (1, 2):
            seen: list[Step] = []
            looked = engine.generate(
                "a red circle", progress=seen.append, preview_every=every, **fields
            )
            assert array(looked) == plain and seen
