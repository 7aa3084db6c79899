"""HTTP server: an app on a port, with slow clients cut off and an end that waits for requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdengine.serving.jobs import Job
from sdengine.serving.native_api import KIND
from sdengine.serving.service import Service

_MAX_CONNECTIONS = 512
_KEEP_ALIVE_SECONDS = 60
_FETCH_SECONDS = 10.0  # in which clients may have what was made last


def run_server(
    app: ASGIApp,
    service: Service,
    host: str,
    port: int,
    drain_seconds: float,
    ready: Callable[[str, int], None] = lambda host, port: None,
) -> bool:
    """Serve until a signal ends it: SIGTERM or SIGINT; a second one does not wait.

    Args:
        app: of `create_app`.
        service: of the app.
        host, port: to listen on; port 0 for one that is free.
        drain_seconds: that requests which are there may still take.
        ready: called with host and port once connections are accepted.

    Returns:
        Whether all requests were finished.

    Raises:
        OSError: the port cannot be listened on.
    """
    return asyncio.run(_serve(app, service, host, port, drain_seconds, ready))


def server_config(app: ASGIApp, service: Service, host: str, port: int) -> uvicorn.Config:
    """Return how an app is served; arguments as for `run_server`."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_protocol(service.limits.header_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens, bound here: a server that cannot would end the process.

    It is said to be of TCP, because asyncio sends small answers at once by such ones alone: else
    the kernel holds them back for 40 ms.

    Raises:
        OSError: the place is taken, or none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except BaseException:
        listening.close()
        raise
    return listening


async def _serve(
    app: ASGIApp,
    service: Service,
    host: str,
    port: int,
    drain_seconds: float,
    ready: Callable[[str, int], None],
) -> bool:
    listening = listening_socket(host, port)
    server = _Server(server_config(app, service, host, port))
    loop = asyncio.get_running_loop()
    finished, is_hurried = True, False
    cut_off: list[Job] = []

    async def end() -> None:
        nonlocal finished
        # Clients may still ask for what is being made: connections are refused only after it.
        finished = await service.drain(drain_seconds)
        until = loop.time() + min(drain_seconds, _FETCH_SECONDS)
        await asyncio.sleep(0.2)  # the last answers are on their way
        while (
            not is_hurried
            and loop.time() < until
            and any(
                job.result is not None and not job.is_fetched and job.kind == KIND
                for job in service.jobs
            )
        ):
            await asyncio.sleep(0.05)
        server.should_exit = True

    ending: list[asyncio.Task[None]] = []

    def on_signal() -> None:
        nonlocal is_hurried
        if ending:
            is_hurried = True
            for job in service.jobs:
                if not job.is_over:
                    cut_off.append(job)
                    service.cancel(job)
        else:
            ending.append(loop.create_task(end()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    with listening:
        place = listening.getsockname()
        serving = loop.create_task(server.serve([listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if not serving.done():
            ready(place[0], place[1])
        await serving
    return finished and not cut_off


class _Server(uvicorn.Server):
    """A server whose signals are somebody else's, and which fails by an error."""

    def install_signal_handlers(self) -> None:
        """Leave them as they are."""

    def capture_signals(self) -> Any:
        """Leave them as they are."""
        return contextlib.nullcontext()


def _protocol(header_seconds: int) -> type[asyncio.Protocol]:
    """Return a protocol that closes connections whose next request's head does not come in time."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(header_seconds, self._check_head)

        def data_received(self, data: bytes) -> None:
            had = self.cycle
            super().data_received(data)
            if self.cycle is not had and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            elif self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._timer = self.loop.call_later(header_seconds, self._check_head)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _check_head(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Protocol


class JSONLines(logging.Formatter):
    """Log records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        told |= getattr(record, "told", None) or {"message": record.getMessage()}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


@contextlib.contextmanager
def logs_as_json() -> Iterator[None]:
    """Write the logs of the server to standard error as lines of JSON, inside the block."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    loggers = {logging.getLogger("sdengine"): logging.INFO}
    loggers[logging.getLogger("uvicorn")] = logging.WARNING
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    for logger, level in loggers.items():
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
