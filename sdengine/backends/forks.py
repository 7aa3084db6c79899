"""Forks: what a child process of fork makes anew, because its parent's threads stay in the parent.

Only the thread that forks goes on in the child. A lock that another one held would never be given
back, and what waits for another one would wait for ever.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol


class Forked(Protocol):
    """What does something in a child process before that runs anything else."""

    def after_fork(self) -> None:
        """Make anew what only the parent's threads could give back."""
        ...


_watched: weakref.WeakSet[Forked] = weakref.WeakSet()


def watch_forks(one: Forked) -> None:
    """Have `after_fork` called in every child process, as long as the object is there."""
    _watched.add(one)


def _tell_all() -> None:
    for one in list(_watched):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_all)


class ForkSafeLock:
    """A lock that nobody holds in a child process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        watch_forks(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock.locked():  # a child that forked inside the block has a lock of its own
            self._lock.release()

    def after_fork(self) -> None:
        """Forget who held it."""
        self._lock = threading.Lock()
