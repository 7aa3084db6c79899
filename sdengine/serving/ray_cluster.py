"""Ray cluster: one that runs already, or one that this process starts for itself alone."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.machine import usable_processors

LOCAL = "local"
STALL_SECONDS = 3600.0
_AUTO = "auto"
_OBJECT_STORE_BYTES = 200 << 20  # of a local cluster; only records are in it
_CONNECT_SECONDS = 10.0
# Tries to start a cluster: Ray gives a node 30 seconds, in which a busy machine may not read its
# modules for the first time.
_STARTS = 2


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
    stall_seconds: float = STALL_SECONDS

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


@contextmanager
def cluster(
    ray: Any, options: RayOptions, threads: int | None = None
) -> Iterator[tuple[int, int | None]]:
    """Connect, and give the number of actors and the CPU threads of each; end what was started.

    Args:
        ray: as `import_ray` returns it.
        options: how.
        threads: of each actor; None divides what there is.

    Raises:
        ConfigError: the cluster has not what the options ask for.
        BackendUnavailableError: there is none at that address.
    """
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
        for left in reversed(range(_STARTS if local else 1)):
            try:
                _require_listener(options.address)
                ray.init(
                    address=options.address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **local,
                )
                break
            except Exception as error:  # Ray raises that itself where a node begins too slowly
                if not left:
                    raise BackendUnavailableError(
                        f"ray: no cluster at {options.address!r}: {str(error)[:300]}"
                    ) from None
    try:
        _configure(ray)
        yield shares(ray, options, threads)
    finally:
        # Where it ends early, threads of Ray find that there is no cluster any more, and say so.
        logging.getLogger("ray").setLevel(logging.CRITICAL + 1)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)
        ray.shutdown()


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


def shares(ray: Any, options: RayOptions, threads: int | None) -> tuple[int, int | None]:
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
