"""A server of one service in this process, on a port of its own, for clients of every kind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from sdengine.engine import Engine
from sdengine.serving.app import create_app
from sdengine.serving.http_server import listening_socket, server_config
from sdengine.serving.service import Service


@contextmanager
def serving(engines: Mapping[str, Engine], **options: Any) -> Iterator[tuple[str, Service]]:
    """Serve inside the block; give the base URL, without a slash at its end, and the service.

    Args:
        engines: by name; they stay open.
        options: of `Service`; `hosts` of `create_app`.
    """
    named = {"hosts": options.pop("hosts")} if "hosts" in options else {}
    service = Service(engines, **options)
    app = create_app(service, drain_seconds=5, **named)
    server = uvicorn.Server(server_config(app, service, "127.0.0.1", 0))
    with listening_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve([bound])), name="server", daemon=True
        )
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{port}", service
        finally:
            server.should_exit = True
            thread.join()
