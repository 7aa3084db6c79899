"""Turns: requests wait in the order in which they came, and may be cancelled."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sdengine.backends.forks import watch_forks
from sdengine.errors import Cancelled

_POLL_SECONDS = 0.02


@dataclass(eq=False)
class _Turn:
    """One place in the queue: its thread, whether it has come, and what is done at its end."""

    thread: int = field(default_factory=threading.get_ident)
    has_come: threading.Event = field(default_factory=threading.Event)
    at_end: list[Callable[[], object]] = field(default_factory=list)


class Turns:
    """A lock that is given to those who wait for it in the order of their arrival.

    A thread that holds it may take it again. A child process of fork keeps only what the thread
    that forked holds: the others are not there.
    """

    def __init__(self) -> None:
        self._guard = threading.RLock()  # whom a signal interrupts may come again
        self._queue: deque[_Turn] = deque()  # the first one holds the turn
        watch_forks(self)

    @contextmanager
    def take(self, cancel: threading.Event | None = None) -> Iterator[None]:
        """Hold the turn inside the block.

        Args:
            cancel: setting it ends the wait.

        Raises:
            Cancelled: `cancel` was set before the turn came.
        """
        if self.is_own:
            yield
            return
        mine = self._join()
        try:
            while not mine.has_come.wait(None if cancel is None else _POLL_SECONDS):
                check_cancelled(cancel)
            yield
        finally:
            self._leave(mine)

    @property
    def is_own(self) -> bool:
        """Whether this thread holds the turn."""
        own = self._own()
        return own is not None and own.has_come.is_set()

    def at_end(self, action: Callable[[], object]) -> None:
        """Do something that nobody's turn overlaps with: now, or at the end of this thread's turn.

        Args:
            action: it is called in the turn that this thread has or waits for, where there is one,
                else in one of its own, before this returns.
        """
        own = self._own()
        if own is not None:
            own.at_end.append(action)
            return
        with self.take():
            action()

    def after_fork(self) -> None:
        """Forget the turns of threads that the child process does not have."""
        own = [turn for turn in self._queue if turn.thread == threading.get_ident()]
        self._guard, self._queue = threading.RLock(), deque(own)
        if own:
            own[0].has_come.set()

    def _own(self) -> _Turn | None:
        thread = threading.get_ident()
        with self._guard:
            return next((turn for turn in self._queue if turn.thread == thread), None)

    def _join(self) -> _Turn:
        mine = _Turn()
        with self._guard:
            own = self._own()
            if own is None:
                self._queue.append(mine)
            else:  # a signal's handler, which the thread's own turn waits for
                self._queue.insert(self._queue.index(own), mine)
            self._queue[0].has_come.set()
        return mine

    def _leave(self, mine: _Turn) -> None:
        had_come = mine.has_come.is_set()
        try:
            for action in mine.at_end if had_come else ():
                action()
        finally:
            with self._guard:
                self._queue.remove(mine)
                if self._queue:
                    self._queue[0].has_come.set()
        for action in () if had_come else mine.at_end:
            self.at_end(action)


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise Cancelled when the caller has set the event."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("the request was cancelled.")
