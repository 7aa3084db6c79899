"""Ray batches: the rows of a batch spread over a cluster, one engine an actor.

Actors read rows and write pictures themselves, so every node must see the files under the same
paths. What goes through Ray are places of lines and records, a kilobyte each. Ray Data gives the
lines of an actor that died to others; rows that were made by then are there, and are not made
again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import sdengine.errors
from sdengine.backends.machine import usable_processors
from sdengine.errors import (
    BackendUnavailableError,
    ConfigError,
    DeviceError,
    DeviceLostError,
    SdengineError,
)
from sdengine.serving.batch import BatchJob, Record
from sdengine.serving.batch_rows import Chunk, RowFile, read_rows
from sdengine.serving.begun_rows import BegunRows

LOCAL = "local"
_AUTO = "auto"
_OBJECT_STORE_BYTES = 200 << 20  # of a local cluster; only records are in it
_MAX_CHUNKS = 1 << 14
_LOOK_SECONDS = 1.0
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True)
class RayOptions:
    """How a batch uses a cluster.

    Args:
        address: of a running one, "auto" for this machine's, or LOCAL for one that is started on
            this machine and ends with the batch.
        actors: engines at once; None is one a node, or as many as the cluster's GPUs give.
        gpus_per_actor: GPUs of each, or a share of one, which divides no memory.
        stall_seconds: after which without any row the batch ends.
    """

    address: str
    actors: int | None = None
    gpus_per_actor: float = 0.0
    stall_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if self.address not in (LOCAL, _AUTO) and _host_and_port(self.address) is None:
            raise ConfigError.for_field("ray", self.address, "local, auto or HOST:PORT")
        if self.actors is not None and not 1 <= self.actors <= 10_000:
            raise ConfigError.for_field("actors", self.actors, "an integer from 1 to 10000")
        if not 0 <= self.gpus_per_actor <= 64:
            raise ConfigError.for_field("gpus_per_actor", self.gpus_per_actor, "from 0 to 64")
        if not 1 <= self.stall_seconds < 1e9:
            raise ConfigError.for_field("stall", self.stall_seconds, "seconds, at least 1")


# Read when Ray is imported. Without the first a thread that still reads would start a cluster of
# its own once this one has ended; the second is that nothing is told to anybody.
_ENVIRONMENT = {"RAY_ENABLE_AUTO_CONNECT": "0", "RAY_USAGE_STATS_ENABLED": "0"}
# Of a local cluster, which runs the code of whoever can talk to it: nobody from elsewhere can (as
# on systems for which Ray has no clusters), and nobody here without its token.
_LOCAL_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


def import_ray(options: RayOptions) -> Any:
    """Return the module `ray` with `ray.data`, imported as the options need it.

    Raises:
        ImportError: it is not installed.
    """
    wanted = dict(_ENVIRONMENT)
    if options.address == LOCAL:
        wanted |= {**_LOCAL_ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    import ray.data

    return ray


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
    with _cluster(ray, job, options) as (actors, threads):
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


@contextmanager
def _cluster(ray: Any, job: BatchJob, options: RayOptions) -> Iterator[tuple[int, int | None]]:
    """Connect, and give the number of actors and the CPU threads of each."""
    threads = job.options.get("threads")
    local = {}
    if options.address == LOCAL:
        actors = options.actors or 1
        own = threads or max(1, usable_processors().threads // actors)
        local = {
            "num_cpus": actors * own,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    with _own_signals():
        try:
            _require_listener(options.address)
            ray.init(
                address=options.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **local,
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise BackendUnavailableError(
                f"ray: no cluster at {options.address!r}: {str(error)[:300]}"
            ) from None
    try:
        _configure(ray)
        yield _shares(ray, options, threads)
    finally:
        # Where it ends early, threads of Ray find that there is no cluster any more, and say so.
        logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)
        ray.shutdown()
        BegunRows(job.output).clear()  # whose actors were ended here


def _require_listener(address: str) -> None:
    """Raise OSError where nobody listens at an address: Ray itself would wait, and then abort."""
    place = _host_and_port(address)
    if place is not None:
        socket.create_connection(place, _CONNECT_SECONDS).close()


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return None
    return host.strip("[]"), int(port)


def _shares(ray: Any, options: RayOptions, threads: int | None) -> tuple[int, int | None]:
    """Return the number of actors and the CPU threads of each; refuse what cannot be had."""
    found = ray.cluster_resources()
    cpus, gpus, wanted = int(found.get("CPU", 0)), found.get("GPU", 0.0), options.gpus_per_actor
    actors = options.actors or (int(gpus / wanted) if wanted else len(ray.nodes()))
    if (wanted and actors * wanted > gpus) or not actors:
        accepted = f"what {gpus:g} GPUs of the cluster give"
        raise ConfigError.for_field("gpus_per_actor", f"{actors} x {wanted:g}", accepted)
    if threads is None and not wanted:
        threads = max(1, cpus // actors)
    if actors * (threads or 1) > cpus:
        asked, accepted = f"{actors} x {threads or 1} threads", f"at most {cpus} CPUs"
        raise ConfigError.for_field("actors", asked, accepted, "The cluster has no more.")
    return actors, threads


def _configure(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # rows of a lost block become errors, the others go on
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the process's handlers of signals, of which Ray's start replaces some."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _fatal(error: SdengineError) -> dict[str, Any]:
    return {"fatal": [type(error).__name__, str(error)]}


def _error_of(told: list[str]) -> SdengineError:
    kind = getattr(sdengine.errors, told[0], SdengineError)
    return kind(told[1]) if issubclass(kind, SdengineError) else SdengineError(told[1])
