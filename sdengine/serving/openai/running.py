"""Running of a call: its requests in turn, their pictures at the end or as they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi.responses import StreamingResponse
from starlette.requests import Request as HTTPRequest
from starlette.types import Receive, Scope, Send

from sdengine.errors import SdengineError
from sdengine.images.result import Result
from sdengine.serving.error_answers import HTTPError, answer_of, body_of
from sdengine.serving.jobs import CANCELLED, Job
from sdengine.serving.openai.answers import DONE, completed_events, error_event, partial_event
from sdengine.serving.openai.requests import Call
from sdengine.serving.refusals import BusyError
from sdengine.serving.waiting import CLIENT_GONE, result_of

_log = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 10.0
_ROOM_SECONDS = 0.5


class Run:
    """The jobs of a call, of which one at a time waits or runs.

    Args:
        call: what is asked for.
        owner: name of the token that asks.
        path: of the call, for errors.
    """

    def __init__(self, call: Call, owner: str, path: str) -> None:
        self.call, self.owner, self.path = call, owner, path
        self.job: Job | None = None

    async def submit(self, number: int) -> Job:
        """Let one of the requests wait for its turn.

        Raises:
            SdengineError: it is not accepted, or there is no room for it.
        """
        call, service = self.call, self.call.service
        service.check_room(self.owner)  # before a picture is decoded for it
        request = await asyncio.to_thread(call.request, number)
        if number == 0:  # or its first pictures would be made for nothing
            service.check_quota(self.owner, call.count * request.batch_size)
        partial = call.options.partial_images
        every = max(1, request.num_steps_run // (partial + 1)) if partial else 0
        self.job = await service.submit(
            request, self.owner, bundle=call.bundle, kind=f"images/{call.kind}", preview_every=every
        )
        return self.job

    async def submit_next(self, number: int, is_gone: Callable[[], Awaitable[bool]]) -> Job:
        """Do so for one that is not the first, waiting for room: others of the call are made.

        Args:
            number: of the request.
            is_gone: says whether the client went away.
        """
        while True:
            try:
                return await self.submit(number)
            except BusyError as error:
                if error.reason != "queue":
                    raise
            await asyncio.sleep(_ROOM_SECONDS)
            if await is_gone():
                raise HTTPError(CLIENT_GONE, "the client went away.", "Disconnected")

    def end(self) -> None:
        """Cancel and forget the job that waits or runs, where there is one."""
        if self.job is not None:
            if not self.job.is_over:
                self.call.service.cancel(self.job)
            self.call.service.jobs.forget(self.job)
            self.job = None

    async def results(self, http: HTTPRequest) -> list[Result]:
        """Return the results of all requests, the first of which is submitted.

        Raises:
            SdengineError: one failed, or the client went away, and what was left is cancelled.
        """
        found = []
        try:
            for number in range(self.call.count):
                job = self.job or await self.submit_next(number, http.is_disconnected)
                found.append(await result_of(job, self.call.service, http))
                self.end()
        finally:
            self.end()
        return found

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of all requests, the first of which is submitted."""
        try:
            for number in range(self.call.count):
                job = self.job or await self.submit_next(number, _stays)
                async for event in self._events_of(job):
                    yield event
                self.end()
            yield DONE
        except Exception as error:  # the status of the response is sent already
            if not isinstance(error, SdengineError):
                _log.exception("a stream failed")
            yield error_event(body_of(self.path, answer_of(error)))
        finally:
            self.end()

    async def _events_of(self, job: Job) -> AsyncIterator[bytes]:
        sent, shown = 0, 0
        while not job.is_over:
            preview, number = job.preview, job.preview_number
            # Jobs that run together with others may bring more previews than were asked for.
            is_due = job.step >= job.preview_every * (sent + 1)
            if number > shown and is_due and preview is not None:
                shown = number
                if sent < self.call.options.partial_images:
                    yield await asyncio.to_thread(
                        partial_event, self.call, job.request, preview[0], sent
                    )
                    sent += 1
                continue  # it may have gone on meanwhile
            if not await job.changed(_KEEP_ALIVE_SECONDS):
                yield b": still there\n\n"
        if job.error is not None:
            raise job.error
        if job.status == CANCELLED or job.result is None:
            raise HTTPError(409, "the request was cancelled.", "Cancelled")
        for event in await asyncio.to_thread(completed_events, self.call, job.result):
            yield event


class EventStream(StreamingResponse):
    """Response of a run's events, which ends it however the response ends.

    Args:
        run: whose first request is submitted.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(
            run.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as ASGI says."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.end()  # a generator that was never begun does not end itself


async def _stays() -> bool:
    return False
