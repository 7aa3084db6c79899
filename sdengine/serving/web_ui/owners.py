"""Owners: what the web UI's clients set, and which of their tasks ended, apart for each of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from sdengine.serving.refusals import BusyError
from sdengine.serving.web_ui.settings import DEFAULTS

_KEPT_TASKS = 16  # as many as the web UI remembers
_MOST_WAITING = 16
_Made = TypeVar("_Made")


class Owners:
    """What is remembered. Belongs to the event loop; names of owners are those of tokens."""

    def __init__(self) -> None:
        self._settings: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, deque[str]] = {}

    def settings(self, owner: str) -> dict[str, Any]:
        """Return all settings of an owner, which the caller may change."""
        return {**DEFAULTS, **self._settings.get(owner, {})}

    def set(self, owner: str, settings: Mapping[str, Any]) -> None:
        """Change some settings of an owner for requests to come."""
        self._settings.setdefault(owner, {}).update(settings)

    def end(self, owner: str, task: str) -> None:
        """Remember that a task of an owner has ended."""
        self._ended.setdefault(owner, deque(maxlen=_KEPT_TASKS)).append(task)

    def has_ended(self, owner: str, task: str) -> bool:
        """Say whether a task was one of the last that ended."""
        return task in self._ended.get(owner, ())


class Workbench:
    """Where work on pictures is done that is no job: one piece at a time, with few that wait."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def do(self, work: Callable[[], _Made]) -> _Made:
        """Return what work in a thread gives.

        Raises:
            BusyError: too much waits already.
        """
        if self._waiting >= _MOST_WAITING:
            raise BusyError("other pictures wait to be worked on. Try again in 2 s.", 2, "pictures")
        self._waiting += 1
        try:
            async with self._lock:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


def owners_of(request: HTTPRequest) -> Owners:
    """Return what the app of a request remembers."""
    return _of_app(request, "web_ui_owners", Owners)


def workbench_of(request: HTTPRequest) -> Workbench:
    """Return the workbench of the app of a request."""
    return _of_app(request, "web_ui_workbench", Workbench)


def _of_app(request: HTTPRequest, name: str, make: Callable[[], _Made]) -> _Made:
    state = request.app.state
    if not hasattr(state, name):
        setattr(state, name, make())
    found: _Made = getattr(state, name)
    return found
