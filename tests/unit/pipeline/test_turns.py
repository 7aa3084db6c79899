from __future__ import annotations

import threading

import pytest

from sdengine.errors import Cancelled
from sdengine.pipeline.turns import Turns


def wait_until_queued(turns: Turns, count: int) -> None:
    while len(turns._queue) < count:
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


def test_cancelled_while_queue_leaves_the_queue() -> None:
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
        assert len(turns._queue) == 1
    with turns.take():
        pass


def test_an_error_gives_the_turn_back() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="inside"), turns.take():
        raise ValueError("inside")
    with turns.take():
        pass


def test_a_thread_takes_its_own_turn_again() -> None:
    turns = Turns()
    assert not turns.is_own
    with turns.take():
        assert turns.is_own
        with turns.take(threading.Event()):
            pass
        assert turns.is_own
        thread = threading.Thread(target=lambda: owned.append(turns.is_own))
        owned: list[bool] = []
        thread.start()
        thread.join()
        assert owned == [False]
    assert not turns.is_own


def test_what_is_left_for_the_end_of_a_turn() -> None:
    turns = Turns()
    done: list[tuple[str, bool]] = []
    with turns.take(), turns.take():
        turns.at_end(lambda: done.append(("inside", turns.is_own)))
        assert not done
    assert done == [("inside", True)]
    turns.at_end(lambda: done.append(("alone", turns.is_own)))
    assert done[1:] == [("alone", True)]
    with pytest.raises(ValueError, match="action"), turns.take():
        turns.at_end(lambda: int("action"))
    with turns.take():
        pass


def test_what_interrupts_a_thread_that_waits_comes_before_it() -> None:
    turns = Turns()
    order: list[str] = []
    cancel = threading.Event()

    class Interrupted(threading.Event):
        """Does while it is looked at what a signal's handler would do."""

        def is_set(self) -> bool:
            if not order:
                order.append("interrupted")
                turns.at_end(lambda: order.append("end"))
                cancel.set()
                with turns.take():
                    order.append("inside")
            return super().is_set()

    def work() -> None:
        with turns.take(Interrupted()):
            order.append("own")

    with turns.take():
        thread = threading.Thread(target=work)
        thread.start()
        cancel.wait()
        wait_until_queued(turns, 3)
    thread.join()
    assert order == ["interrupted", "inside", "own", "end"]


def test_a_cancelled_wait_does_what_was_left_for_its_end() -> None:
    turns = Turns()
    cancel = threading.Event()
    done: list[bool] = []

    class Cancelling(threading.Event):
        def is_set(self) -> bool:
            if not super().is_set():
                self.set()
                turns.at_end(lambda: done.append(turns.is_own))
                cancel.set()
            return super().is_set()

    def work() -> None:
        with pytest.raises(Cancelled), turns.take(Cancelling()):
            pass

    with turns.take():
        thread = threading.Thread(target=work)
        thread.start()
        cancel.wait()
        assert not done
    thread.join()
    assert done == [True]
