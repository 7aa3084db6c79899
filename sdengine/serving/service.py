"""Service: engines that serve the jobs of many clients in fair turns, alike ones together."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from sdengine.engine import Engine
from sdengine.errors import Cancelled, ConfigError, SdengineError
from sdengine.images.result import Result, Step
from sdengine.pipeline.joining import join_key, joined, parted
from sdengine.request.request import Request
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.fair_queue import FairQueue, Full
from sdengine.serving.job_store import JobStore
from sdengine.serving.jobs import CANCELLED, COMPLETED, FAILED, Job
from sdengine.serving.limits import Limits
from sdengine.serving.metrics import Metrics
from sdengine.serving.payload import InBase64, one_request
from sdengine.serving.refusals import BusyError, DrainingError
from sdengine.serving.tokens import Allowance, Tokens

_log = logging.getLogger(__name__)
_MAX_RETRY_SECONDS = 120


# Name of the bundle, request, what is told of steps, steps between previews, what ends it.
Run = Callable[[str, Request, Callable[[Step], None], int, threading.Event], Result]


class Service:
    """Take requests, let them wait in fair turns, run them, and keep their results for a while.

    One request, or several alike ones, are run at a time: on a processor two at once take longer
    than one after the other. Everything but the runs belongs to the event loop that `submit` is
    called on.

    Args:
        engines: by name; the first is that of requests that name none.
        catalogue: of what requests may name.
        limits: of what they may ask for.
        tokens: of clients with quotas of their own.
        joins: run alike requests at once; by default on target native, where each gets the pictures
            that it would have got alone, to the byte.
        run: what runs a request, in place of the engine of that name in this process.
        workers: runs at a time, where they are not this machine's.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        catalogue: Catalogue | None = None,
        limits: Limits | None = None,
        tokens: Tokens | None = None,
        *,
        joins: bool | None = None,
        run: Run | None = None,
        workers: int = 1,
    ) -> None:
        if not engines:
            raise ConfigError.for_field("engines", {}, "at least one")
        self.engines = MappingProxyType(dict(engines))
        self.catalogue = catalogue or Catalogue()
        self.limits = limits or Limits()
        self.tokens = tokens or Tokens()
        self.joins = joins
        self.pictures = InBase64(self.limits.max_picture_pixels)
        self.metrics = Metrics()
        self.jobs = JobStore(self.limits)
        self.is_draining = False
        self._queue = FairQueue(self.limits.max_queue)
        self._allowances = {
            token.name: Allowance(token.images_per_hour)
            for token in self.tokens
            if token.images_per_hour
        }
        self._run_request = run or self._run_here
        self._workers = [
            threading.Thread(target=self._work, name=f"sdengine-jobs-{number}", daemon=True)
            for number in range(workers)
        ]
        self._running: dict[Job, None] = {}  # in the order in which they began
        self._rate: float | None = None  # work a second
        self._has_started = False
        self.metrics.watch("queue_length", lambda: len(self._queue))
        self.metrics.watch("running", lambda: len(self._running))

    def start(self) -> None:
        """Begin to run jobs; a second call does nothing."""
        if not self._has_started:
            self._has_started = True
            for worker in self._workers:
                worker.start()

    def engine(self, name: str = "") -> Engine:
        """Return the engine of a name, or the first one.

        Raises:
            ConfigError: none has it.
        """
        if not name:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            raise ConfigError.for_field("bundle", name, f"one of {', '.join(self.engines)}")
        return self.engines[name]

    async def submit(
        self,
        keywords: Mapping[str, Any] | Request | Callable[[], Mapping[str, Any] | Request],
        owner: str,
        *,
        bundle: str = "",
        kind: str = "job",
        preview_every: int = 0,
        job_id: str = "",
    ) -> Job:
        """Check a request and let it wait for its turn.

        Args:
            keywords: of `Engine.request`, prompts included, with pictures as contents of files; or
                what returns them, which is called in a thread. A whole request may take their
                place.
            owner: name of the token that asks.
            bundle: name of the engine that shall run it.
            kind: of the call, for people.
            preview_every: steps between previews; 0 for none.
            job_id: a client's own name for the job.

        Raises:
            BusyError: the queue or a quota is full.
            DrainingError: the server ends.
            ConfigError, AdapterError, CheckpointError: the request is not accepted.
        """
        self.check_room(owner)
        name = bundle or next(iter(self.engines))
        engine = self.engine(name)
        request, key = await asyncio.to_thread(self._prepared, engine, keywords)
        self.check_quota(owner, request.batch_size)
        job = Job(
            request,
            owner,
            name,
            kind,
            key,
            preview_every,
            asyncio.get_running_loop(),
            job_id,
        )
        self.check_room(owner)  # others came meanwhile
        self._check_held(job)
        self.jobs.add(job)
        try:
            self._queue.put(job, self._most_of(owner))
        except Full:  # pragma: no cover (checked just before, on the same loop)
            self.jobs.forget(job)
            raise self._full(owner) from None
        if (allowance := self._allowances.get(owner)) is not None:
            allowance.use(request.batch_size)
        return job

    @property
    def is_working(self) -> bool:
        """Whether jobs are run: none of its threads has ended."""
        return self._has_started and all(worker.is_alive() for worker in self._workers)

    def check_quota(self, owner: str, images: int) -> None:
        """Refuse a call of several requests that a quota has not enough left for.

        Raises:
            BusyError, ConfigError: so it is.
        """
        allowance = self._allowances.get(owner)
        if allowance is not None:
            self._check_allowance(owner, allowance, images)

    def cancel(self, job: Job) -> None:
        """End a job: at once where it waits, within a step where it runs."""
        job.cancel.set()
        if self._queue.remove(job):
            self._end(job, CANCELLED)

    def position(self, job: Job) -> int | None:
        """Return how many jobs are run before one that waits, None of any other."""
        return None if job.is_over else self._queue.position(job)

    @property
    def running(self) -> tuple[Job, ...]:
        """The jobs that run now."""
        return tuple(self._running)

    @property
    def num_waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    async def drain(self, seconds: float) -> bool:
        """Take nothing new, finish what is there, and end; cancel what takes longer.

        Args:
            seconds: that it may take.

        Returns:
            Whether everything was finished.
        """
        self.is_draining = True
        end = time.monotonic() + seconds
        while any(not job.is_over for job in self.jobs) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        left = [job for job in self.jobs if not job.is_over]
        for job in self._queue.close():
            self._end(job, CANCELLED)
        for job in left:
            job.cancel.set()
        if self._has_started:
            for worker in self._workers:
                await asyncio.to_thread(worker.join)
        return not left

    def _prepared(
        self,
        engine: Engine,
        keywords: Mapping[str, Any] | Request | Callable[[], Mapping[str, Any] | Request],
    ) -> tuple[Request, Any]:
        with one_request():
            given = keywords() if callable(keywords) else keywords
            if not isinstance(given, Request):
                rest = dict(given)
                texts = rest.pop("prompt", ""), rest.pop("negative_prompt", "")
                given = engine.request(*texts, **rest)
        self.limits.check(given)
        return given, join_key(given, engine.plan(given))

    def check_room(self, owner: str) -> None:
        """Refuse what could not wait now, before work is spent on it.

        Raises:
            BusyError: the queue is full.
            DrainingError: the server ends.
        """
        if self.is_draining:
            raise DrainingError("the server ends and takes nothing new. Ask another one.")
        try:
            self._queue.check_room(owner, self._most_of(owner))
        except Full:
            raise self._full(owner) from None

    def _most_of(self, owner: str) -> int:
        token = self.tokens.named(owner)
        return (token and token.max_queue) or self.limits.max_queue_of_token

    def _full(self, owner: str) -> BusyError:
        waiting, own = len(self._queue), self._queue.waiting_of(owner)
        each = 1.0
        if self._rate is not None:
            each = self._queue.work() / max(waiting, 1) / self._rate
        seconds = min(max(1, math.ceil(each)), _MAX_RETRY_SECONDS)
        message = (
            f"the queue is full: {waiting} requests wait, {own} of them of this client. Try again "
            f"in {seconds} s."
        )
        return BusyError(message, seconds, "queue")

    def _check_held(self, job: Job) -> None:
        """Refuse a job whose pictures have no room beside those of others that are not over."""
        held = sum(one.picture_bytes for one in self.jobs if not one.is_over)
        if job.picture_bytes and held + job.picture_bytes > self.limits.max_held_bytes and held:
            message = "the pictures of waiting requests take all the memory. Try again in 5 s."
            raise BusyError(message, 5, "pictures")

    def _check_allowance(self, owner: str, allowance: Allowance, images: int) -> None:
        seconds = allowance.seconds_until(images)
        if seconds is None:
            token = self.tokens.named(owner)
            most = 0 if token is None else token.images_per_hour
            raise ConfigError.for_field("batch_size", images, f"at most {most}, this token's quota")
        if seconds > 0:
            after = max(1, math.ceil(seconds))
            message = f"this token's images of an hour are used up. Try again in {after} s."
            raise BusyError(message, after, "quota")

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            jobs = [job]
            try:
                jobs += self._alike(job)
                self._running.update(dict.fromkeys(jobs))
                self._run(jobs)
            except BaseException as error:  # a fault of our own, which must not end this thread
                _log.exception("jobs could not be run")
                fault = error if isinstance(error, Exception) else RuntimeError(repr(error))
                for one in jobs:
                    self._end(one, FAILED, error=fault)
            finally:
                for one in jobs:
                    self._running.pop(one, None)

    def _alike(self, job: Job) -> list[Job]:
        """Take the jobs that wait and may be run with one, as many as its networks take at once."""
        found: list[Job] = []
        engine = self.engines[job.bundle]
        joins = engine.backend.name == "native" if self.joins is None else self.joins
        if job.join_key is None or not joins:
            return found
        room = engine.bundle.manifest.max_batch - job.request.batch_size

        def accepts(other: Job) -> bool:
            return (
                other.join_key == job.join_key
                and other.bundle == job.bundle
                and other.request.batch_size <= room
            )

        while room > 0 and (other := self._queue.take_alike(accepts)) is not None:
            found.append(other)
            room -= other.request.batch_size
        return found

    def _run(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.is_over]
        for job in jobs:
            if job.started is None:
                self.metrics.waited(time.monotonic() - job.queued_at)
            job.begin()
        if not jobs:
            return
        began = time.monotonic()
        try:
            result = self._made(jobs)
        except Cancelled:
            for job in jobs:
                self._end(job, CANCELLED)
        except Exception as error:
            if len(jobs) > 1:  # what is wrong with one is not the others' fault
                for job in jobs:
                    self._run([job])
                return
            if not isinstance(error, SdengineError):
                _log.exception("job %s failed", jobs[0].id)
            self._end(jobs[0], FAILED, error=error)
        else:
            seconds = time.monotonic() - began
            rate = sum(job.work for job in jobs) / max(seconds, 1e-3)
            self._rate = rate if self._rate is None else self._rate + 0.3 * (rate - self._rate)
            self.metrics.generated(seconds, len(result.arrays), len(jobs))
            for job, own in zip(jobs, parted(result, [job.request for job in jobs]), strict=True):
                if job.cancel.is_set():
                    self._end(job, CANCELLED)
                else:
                    self._end(job, COMPLETED, result=own)

    def _made(self, jobs: list[Job]) -> Result:
        stop = jobs[0].cancel if len(jobs) == 1 else threading.Event()
        places, first = [], 0
        for job in jobs:
            places.append(slice(first, first + job.request.batch_size))
            first += job.request.batch_size

        def progress(step: Step) -> None:
            for job, images in zip(jobs, places, strict=True):
                if not job.cancel.is_set():
                    job.advance(step, images)
                elif len(jobs) > 1:
                    self._end(job, CANCELLED)
            if len(jobs) > 1 and all(job.cancel.is_set() for job in jobs):
                stop.set()

        wanted = [job.preview_every for job in jobs if job.preview_every]
        request = joined([job.request for job in jobs])
        return self._run_request(jobs[0].bundle, request, progress, min(wanted, default=0), stop)

    def _run_here(
        self,
        bundle: str,
        request: Request,
        progress: Callable[[Step], None],
        preview_every: int,
        cancel: threading.Event,
    ) -> Result:
        return self.engines[bundle].run(
            request, progress=progress, preview_every=preview_every, cancel=cancel
        )

    def _end(
        self, job: Job, status: str, result: Result | None = None, error: Exception | None = None
    ) -> None:
        if job.is_over:
            return
        if error is not None:
            error = error.with_traceback(None)  # which holds all that the run held
            error.__context__ = error.__cause__ = None
        job.end(status, result, error)
        self.metrics.ended(status)
