"""Ray batches: the rows of a batch spread over a cluster, one engine an actor.

Actors read rows and write pictures themselves, so every node must see the files under the same
paths. What goes through Ray are places of lines and records, a kilobyte each. Ray Data gives the
lines of an actor that died to others; rows that were made by then are there, and are not made
again.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

import sdengine.errors
from sdengine.errors import DeviceError, DeviceLostError, SdengineError
from sdengine.serving.batch import BatchJob, Record
from sdengine.serving.batch_rows import Chunk, RowFile, read_rows
from sdengine.serving.begun_rows import BegunRows
from sdengine.serving.ray_cluster import RayOptions, cluster, import_ray

_MAX_CHUNKS = 1 << 14
_LOOK_SECONDS = 1.0


class RowActor:
    """Hold one engine and make the rows of chunks; Ray Data calls it.

    What is wrong goes out as a record: an exception would end the whole of Ray's job.

    Args:
        job: of the batch.
    """

    def __init__(self, job: BatchJob) -> None:
        self._job = job
        self._open = contextlib.ExitStack()
        self._failed: SdengineError | None = None
        try:
            self._maker = self._open.enter_context(job.opened())
        except SdengineError as error:
            self._failed = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the records of the chunks' rows as JSON, one a row of the column `record`."""
        columns = (batch[name].tolist() for name in ("offset", "first", "count"))
        records = [
            json.dumps(record)
            for offset, first, count in zip(*columns, strict=True)
            for record in self._records(Chunk(offset, first, count))
        ]
        return {"record": np.array(records, dtype=object)}

    def _records(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if self._failed is not None:
            yield _fatal(self._failed)
            return
        try:
            for row in read_rows(self._job.requests, chunk):
                yield asdict(self._maker.make(row))
        except DeviceLostError:
            os._exit(1)  # Ray starts another process, and gives it the chunk again
        except SdengineError as error:
            yield _fatal(error)


def records_on_ray(job: BatchJob, rows: RowFile, options: RayOptions) -> Iterator[Record]:
    """Yield the records of all rows as actors make them, in any order.

    Closing the iterator ends the actors, within a moment, and a local cluster with them.

    Raises:
        ConfigError: the cluster has not what the options ask for.
        BackendUnavailableError: there is no cluster at that address.
        DeviceError: nothing was made for `stall_seconds`.
        SdengineError: an engine cannot be loaded, or files cannot be written.
    """
    ray = import_ray(options)
    with (
        _forgotten_marks(job),
        cluster(ray, options, job.options.get("threads")) as (actors, threads),
    ):
        job = replace(job, options={**job.options, "threads": threads})
        lines = -(-rows.num_lines // _MAX_CHUNKS)  # few: one is told of when all are made
        items = [asdict(chunk) for chunk in rows.chunks(lines)]
        # An actor that dies is started again and gets its task again, as often as it happens: rows
        # that end their process each time are found by `BegunRows`, a cluster in which nothing is
        # made by the time that passes.
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            RowActor,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
            num_cpus=threads or 1,
            num_gpus=options.gpus_per_actor or None,
        )
        for text in _watched(dataset, job, options.stall_seconds):
            content = json.loads(text)
            if "fatal" in content:
                raise _error_of(content["fatal"])
            yield Record(**content)


@contextmanager
def _forgotten_marks(job: BatchJob) -> Iterator[None]:
    """Forget the rows that actors were making when they were ended with the block."""
    try:
        yield
    finally:
        BegunRows(job.output).clear()


def _watched(dataset: Any, job: BatchJob, stall_seconds: float) -> Iterator[str]:
    """Yield what a data set gives; end where neither it nor the output folder changes any more."""
    found: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for row in dataset.iter_rows():
                found.put(row["record"])
            found.put(None)
        except BaseException as error:
            found.put(error)

    # Ray's own waiting cannot be ended by a time; the thread ends with the cluster.
    threading.Thread(target=read, daemon=True).start()
    latest, since = 0, time.monotonic()
    while True:
        try:
            one = found.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            changed = job.output.stat().st_mtime_ns  # every file's renaming changes it
            if changed != latest:
                latest, since = changed, time.monotonic()
            if time.monotonic() - since > stall_seconds:
                raise DeviceError(
                    f"no row was finished for {stall_seconds:g} seconds. `ray status` and the logs "
                    "in /tmp/ray say what the actors do; what is made stays."
                ) from None
            continue
        if one is None:
            return
        if isinstance(one, BaseException):
            raise DeviceError(f"Ray ended the batch: {str(one)[:500]}") from one
        since = time.monotonic()
        yield one


def _fatal(error: SdengineError) -> dict[str, Any]:
    return {"fatal": [type(error).__name__, str(error)]}


def _error_of(told: list[str]) -> SdengineError:
    kind = getattr(sdengine.errors, told[0], SdengineError)
    return kind(told[1]) if issubclass(kind, SdengineError) else SdengineError(told[1])
