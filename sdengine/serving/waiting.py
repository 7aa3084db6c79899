"""Waiting for a job in the name of a client, which may go away meanwhile."""

from __future__ import annotations

import asyncio

from starlette.requests import Request as HTTPRequest

from sdengine.images.result import Result
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.jobs import CANCELLED, Job
from sdengine.serving.refusals import DrainingError
from sdengine.serving.service import Service

CLIENT_GONE = 499  # as widely used proxies call it; nobody reads it


async def result_of(job: Job, service: Service, request: HTTPRequest) -> Result:
    """Return a job's result; where the client goes away or the call is cancelled, cancel the job.

    Raises:
        HTTPError: the client is gone, or the job was cancelled.
        DrainingError: it was cancelled because the server ends.
        SdengineError: the job failed.
    """
    gone = asyncio.create_task(_gone(request))
    over = asyncio.create_task(job.finished())
    try:
        await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
        if not job.is_over:
            raise HTTPError(CLIENT_GONE, "the client went away.", "Disconnected")
    finally:
        gone.cancel()
        over.cancel()
        if not job.is_over:
            service.cancel(job)
    if job.error is not None:
        raise job.error
    if job.status == CANCELLED and service.is_draining:
        raise DrainingError("the server ended before the request was finished.")
    if job.status == CANCELLED or job.result is None:
        raise HTTPError(409, "the request was cancelled.", "Cancelled")
    return job.result


async def _gone(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
