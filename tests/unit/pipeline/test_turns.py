from __future__ import annotations

import threading

import pytest

from sdengine.errors import Cancelled
from sdengine.pipeline.turns import Turns


def wait_until_queued(turns: Turns, count: int) -> None:
    while len(turns._waiting) < count:
        pass


def test_turns_come_in_the_order_of_arrival() -> None:
    turns = Turns()
    order: list[int] = []

    def work(number: int) -> None:
        with turns.take():
            order.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    with turns.take():
        for i, thread in enumerate(threads):
            thread.start()
            wait_until_queued(turns, i + 2)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_only_one_holds_the_turn() -> None:
    turns = Turns()
    holding = 0
    most = 0

    def work() -> None:
        nonlocal holding, most
        for _ in range(50):
            with turns.take():
                holding += 1
                most = max(most, holding)
                holding -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_cancelled_while_waiting_leaves_the_queue() -> None:
    turns = Turns()
    cancel = threading.Event()
    failed = threading.Event()

    def work() -> None:
        try:
            with turns.take(cancel):
                pass
        except Cancelled:
            failed.set()

    with turns.take():
        thread = threading.Thread(target=work)
        thread.start()
        wait_until_queued(turns, 2)
        cancel.set()
        thread.join()
        assert failed.is_set()
        assert len(turns._waiting) == 1
    with turns.take():
        pass


def test_an_error_gives_the_turn_back() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="inside"), turns.take():
        raise ValueError("inside")
    with turns.take():
        pass
