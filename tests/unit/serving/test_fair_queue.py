from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest

from sdengine.request.request import Request
from sdengine.serving.fair_queue import FairQueue, Full
from sdengine.serving.jobs import Job


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        yield loop


def job(loop: asyncio.AbstractEventLoop, owner: str, steps: int = 10) -> Job:
    return Job(Request("a", steps=steps), owner, "demo", "job", None, 0, loop)


def owners(queue: FairQueue, count: int) -> str:
    return "".join(one.owner for _ in range(count) if (one := queue.take()) is not None)


def test_owners_take_turns_whoever_came_first(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(100)
    for owner in "aaaaabb":
        queue.put(job(loop, owner), 100)
    assert owners(queue, 7) == "abababaaa"[:4] + "aaa"


def test_turns_are_counted_in_work(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(100)
    for _ in range(2):
        queue.put(job(loop, "a", steps=40), 100)
    for _ in range(8):
        queue.put(job(loop, "b", steps=10), 100)
    # Each of a's jobs is as much work as four of b's.
    assert owners(queue, 10) in ("abbbbabbbb", "abbbbbabbb")


def test_nobody_saves_turns_up(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(100)
    for _ in range(6):
        queue.put(job(loop, "a"), 100)
    assert owners(queue, 4) == "aaaa"
    for _ in range(4):
        queue.put(job(loop, "b"), 100)
    assert owners(queue, 4) in ("baba", "bbab", "abab")  # not bbbb for the four that a had


def test_what_runs_beside_a_turn_puts_nobody_back(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(100)
    for _ in range(8):
        queue.put(job(loop, "a"), 100)
    queue.put(job(loop, "b"), 100)
    assert owners(queue, 2) == "ab"
    for _ in range(5):
        assert queue.take_alike(lambda one: one.owner == "a") is not None
    queue.put(job(loop, "c"), 100)  # who had nothing yet
    assert owners(queue, 1) == "c"


def test_a_full_queue_refuses(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(3)
    queue.put(job(loop, "a"), 2)
    queue.put(job(loop, "a"), 2)
    with pytest.raises(Full):
        queue.put(job(loop, "a"), 2)
    queue.put(job(loop, "b"), 2)
    with pytest.raises(Full):
        queue.put(job(loop, "c"), 2)
    assert len(queue) == 3


def test_positions_are_those_in_which_jobs_are_taken(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(10)
    jobs = [job(loop, owner, steps) for owner, steps in zip("aabca", (9, 5, 3, 7, 1), strict=True)]
    for one in jobs:
        queue.put(one, 10)
    places = {queue.position(one): one for one in jobs}
    assert sorted(places, key=str) == [0, 1, 2, 3, 4]
    assert [queue.take() for _ in range(5)] == [places[i] for i in range(5)]
    assert queue.position(jobs[0]) is None


def test_removed_and_alike_jobs_leave(loop: asyncio.AbstractEventLoop) -> None:
    queue = FairQueue(10)
    jobs = [job(loop, owner) for owner in "aab"]
    for one in jobs:
        queue.put(one, 10)
    assert queue.remove(jobs[0])
    assert not queue.remove(jobs[0])
    assert queue.take_alike(lambda one: one.owner == "b") is jobs[2]
    assert queue.take_alike(lambda one: one.owner == "b") is None
    assert queue.take() is jobs[1]


def test_closing_wakes_who_waits_and_returns_what_is_left(
    loop: asyncio.AbstractEventLoop,
) -> None:
    queue, taken = FairQueue(10), []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    assert queue.close() == []
    thread.join(timeout=10)
    assert taken == [None]
    other = FairQueue(10)
    left = job(loop, "a")
    other.put(left, 10)
    assert other.close() == [left]
    assert other.take() is None
