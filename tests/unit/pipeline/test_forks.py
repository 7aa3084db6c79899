"""Engines in child processes of fork, as servers have them that load before they start workers."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.forked import status_of_child
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine.backends.forks import ForkSafeLock
from sdengine.engine import Engine
from sdengine.errors import DeviceError
from sdengine.images.result import Step

OPTIONS: dict[str, Any] = {"steps": 2, "seed": 1}


def picture(engine: Engine) -> bytes:
    return engine.generate("a red circle", **OPTIONS).arrays[0].tobytes()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with sdengine.load("demo", threads=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted() -> bytes:
    with sdengine.load("demo", threads=2) as engine:
        return picture(engine)


def expect(engine: Engine, wanted: bytes) -> None:
    assert picture(engine) == wanted


def test_before_the_first_request_and_after(engine: Engine, wanted: bytes) -> None:
    for _ in range(2):
        assert status_of_child(lambda: expect(engine, wanted)) == 0
        expect(engine, wanted)


def test_a_child_closes_drops_or_loads_engines(engine: Engine, wanted: bytes) -> None:
    def load_another() -> None:
        with sdengine.load("demo", threads=2) as other:
            expect(other, wanted)

    expect(engine, wanted)
    assert status_of_child(engine.close) == 0
    assert status_of_child(lambda: engine.__dict__.clear()) == 0
    assert status_of_child(load_another) == 0
    expect(engine, wanted)


def test_beside_a_request_of_another_thread(engine: Engine, wanted: bytes) -> None:
    ending = threading.Event()

    def serve() -> None:
        while not ending.is_set():
            picture(engine)

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):  # wherever the threads are
            time.sleep(0.003 * number)
            work = engine.close if number % 4 == 3 else lambda: expect(engine, wanted)
            assert status_of_child(work) == 0
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def test_while_another_thread_loads(engine: Engine, wanted: bytes) -> None:
    loading, go_on = threading.Event(), threading.Event()
    session: Any = engine.session
    load = session.load

    def slow(*arguments: Any) -> Any:
        loading.set()
        go_on.wait()
        return load(*arguments)

    session.load = slow
    thread = threading.Thread(target=picture, args=(engine,))
    thread.start()
    loading.wait()
    session.load = load
    assert status_of_child(lambda: expect(engine, wanted)) == 0
    go_on.set()
    thread.join()


def test_inside_a_request(engine: Engine, wanted: bytes) -> None:
    statuses: list[int | str] = []

    def fork(step: Step) -> None:
        statuses.append(status_of_child(lambda: expect(engine, wanted)))

    engine.generate("a red circle", progress=fork, **OPTIONS)
    assert statuses == [0, 0]


def test_the_thread_of_async_requests(engine: Engine, wanted: bytes) -> None:
    def serve() -> None:
        result = asyncio.run(engine.generate_async("a red circle", **OPTIONS))
        assert result.arrays[0].tobytes() == wanted

    serve()
    assert status_of_child(serve) == 0
    serve()


def test_pools_of_multiprocessing(engine: Engine, wanted: bytes) -> None:
    global _served
    _served = engine
    expect(engine, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(_serve, range(4)).get(timeout=60) == [wanted] * 4


_served: Engine


def _serve(_: int) -> bytes:
    return picture(_served)


_ENDS_NORMALLY = """
import os, sys, sdengine
engine = sdengine.load("demo", threads=2)
engine.generate("a", steps=1)
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_ends_as_programs_do() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", _ENDS_NORMALLY], timeout=60, check=False)
    assert done.returncode == 0


def test_what_does_not_outlive_a_fork_says_so(tmp_path: Path) -> None:
    engine = sdengine.load(make_tiny_bundle(tmp_path / "tiny"), precision="fp32", threads=1)
    steps = engine.stream("a", steps=2)
    next(steps)

    def refused() -> None:
        for work in (
            lambda: engine.generate("a", steps=1),
            lambda: engine.stream("a"),
            lambda: engine.warm_up(),
            lambda: next(steps),
            lambda: asyncio.run(engine.generate_async("a", steps=1)),
        ):
            with pytest.raises(DeviceError, match=r"belongs to the parent process.*'spawn'"):
                work()
        engine.close()
        engine.close()

    assert status_of_child(refused) == 0
    assert list(steps)[-1].result is not None
    engine.close()


def test_a_lock_is_nobodys_in_a_child() -> None:
    lock = ForkSafeLock()

    def take() -> None:
        with lock:
            pass

    with lock:
        assert status_of_child(take, limit=5) == 0
    take()
