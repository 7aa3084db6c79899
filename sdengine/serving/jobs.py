"""Job: one request on its way through the server, and what clients may see of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.images.result import Result, Step
from sdengine.request.request import Request
from sdengine.serving.payload import picture_bytes

QUEUED, GENERATING = "queued", "generating"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
ENDS = (COMPLETED, FAILED, CANCELLED)


class Job:
    """A request, who asked for it, and how far it is.

    The server's thread writes it, its event loop reads it: everything that changes is one
    assignment.

    Args:
        request: checked.
        owner: name of the token that asked.
        bundle: name of the engine that runs it.
        kind: of the call that made it, for people.
        join_key: see `sdengine.pipeline.joining`.
        preview_every: steps between previews; 0 for none.
        loop: that waits for it.
        job_id: a client's own name for it; by default a new one that nobody can guess.

    Attributes:
        status: one of queued, generating, completed, failed, cancelled.
        step, total: evaluations done, and of all.
        preview: [B,h,w,3] uint8 of the images so far, and `preview_number` counts them.
        result, error: of one that is completed, or failed.
        created, started, ended: seconds since 1970; None before.
    """

    def __init__(
        self,
        request: Request,
        owner: str,
        bundle: str,
        kind: str,
        join_key: Hashable | None,
        preview_every: int,
        loop: asyncio.AbstractEventLoop,
        job_id: str = "",
    ) -> None:
        self.id = job_id or uuid.uuid4().hex
        self.request = request
        self.owner = owner
        self.bundle = bundle
        self.kind = kind
        self.join_key = join_key
        self.preview_every = preview_every
        self.status = QUEUED
        self.step, self.total = 0, max(request.num_steps_run, 1)
        self.preview: NDArray[np.uint8] | None = None
        self.preview_number = 0
        self.result: Result | None = None
        self.error: Exception | None = None
        self.picture_bytes = picture_bytes(request)
        self.is_fetched = False  # somebody had its pictures
        self.created = time.time()
        self.started: float | None = None
        self.ended: float | None = None
        self.began_at = 0.0  # of a clock that nobody sets, for what is measured
        self.queued_at = time.monotonic()
        self.cancel = threading.Event()
        self._loop = loop
        self._changed, self._over = asyncio.Event(), asyncio.Event()
        self._watchers = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing of it will change."""
        return self.status in ENDS

    @property
    def work(self) -> float:
        """About what it costs: pixels times steps times images."""
        request = self.request
        pixels = request.width * request.height
        work = float(pixels * request.num_steps_run * request.batch_size)
        if request.hires is not None:
            width, height = request.hires_size(request.width, request.height)
            work += width * height * (request.hires_steps or request.steps) * request.batch_size
        return work

    def begin(self) -> None:
        """Say that it runs now."""
        self.began_at = time.monotonic()
        self.started = time.time()
        self.status = GENERATING
        self._tell()

    def advance(self, step: Step, images: slice) -> None:
        """Take note of a step of the run that makes these of its images."""
        self.step, self.total = step.index + 1, step.total
        if step.preview is not None and self.preview_every:
            self.preview = step.preview[images]
            self.preview_number += 1
        if self._watchers:  # else nobody is woken at each step
            self._tell()

    def end(
        self, status: str, result: Result | None = None, error: Exception | None = None
    ) -> None:
        """Say how it ended; what comes second is ignored."""
        if self.is_over:
            return
        self.result, self.error = result, error
        self.ended = time.time()
        self.preview = None if status == COMPLETED else self.preview
        self.status = status
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self.is_over:
            self._over.set()

    async def changed(self, seconds: float | None = None) -> bool:
        """Wait until something of it changes; False where nothing did in that time."""
        self._watchers += 1
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        finally:
            self._watchers -= 1
        return True

    async def finished(self) -> None:
        """Wait until it is over."""
        if not self.is_over:
            await self._over.wait()

    def described(self, position: int | None = None) -> dict[str, Any]:
        """Return what clients are told of it.

        Args:
            position: 0 for the next one of the queue; None of one that does not wait.
        """
        told: dict[str, Any] = {
            "id": self.id,
            "kind": self.kind,
            "status": self.status,
            "queue_position": position,
            "step": self.step,
            "total": self.total,
            "progress": 1.0 if self.status == COMPLETED else self.step / self.total,
            "eta_seconds": self.eta_seconds,
            "bundle": self.bundle,
            "created": self.created,
            "started": self.started,
            "completed": self.ended,
            "preview_number": self.preview_number,
            "error": None,
        }
        if self.error is not None:
            told["error"] = {"type": type(self.error).__name__, "message": str(self.error)}
        return told

    @property
    def eta_seconds(self) -> float | None:
        """The seconds until it is over, by its steps so far; None before the first one."""
        if self.status != GENERATING or not self.step:
            return None
        passed = time.monotonic() - self.began_at
        return round(passed / self.step * (self.total - self.step), 3)
