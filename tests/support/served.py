"""Server of the tests: the app on a free port of this machine, in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn

from sdengine.engine import Engine
from sdengine.serving.app import create_app
from sdengine.serving.service import Service


@contextlib.contextmanager
def serving(engines: Mapping[str, Engine], **options: Any) -> Iterator[tuple[str, Service]]:
    """Serve engines, and yield the address and the service.

    Args:
        engines: by name.
        options: of `Service`.
    """
    service = Service(engines, **options)
    app = create_app(service, drain_seconds=5)
    config = uvicorn.Config(app, port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", service
    finally:
        server.should_exit = True
        thread.join()
