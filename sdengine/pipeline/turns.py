"""Turns: requests wait in the order in which they came, and may be cancelled."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sdengine.errors import Cancelled

_POLL_SECONDS = 0.02


class Turns:
    """A lock that is given to those who wait for it in the order of their arrival."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()  # the first one holds the turn

    @contextmanager
    def take(self, cancel: threading.Event | None = None) -> Iterator[None]:
        """Hold the turn inside the block.

        Args:
            cancel: setting it ends the wait.

        Raises:
            Cancelled: `cancel` was set before the turn came.
        """
        mine = threading.Event()
        with self._guard:
            self._waiting.append(mine)
            if len(self._waiting) == 1:
                mine.set()
        try:
            while not mine.wait(None if cancel is None else _POLL_SECONDS):
                check_cancelled(cancel)
            yield
        finally:
            with self._guard:
                self._waiting.remove(mine)
                if self._waiting:
                    self._waiting[0].set()


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raise Cancelled when the caller has set the event."""
    if cancel is not None and cancel.is_set():
        raise Cancelled("the request was cancelled.")
