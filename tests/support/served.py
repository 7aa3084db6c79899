"""A server of the demo model in a thread of the tests, for real clients."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn

import sdengine
from sdengine.serving.app import create_app
from sdengine.serving.service import Service


@contextlib.contextmanager
def serving(
    engines: Mapping[str, sdengine.Engine] | None = None, **options: Any
) -> Iterator[tuple[str, Service]]:
    """Serve on a free port; give the base URL and the service.

    Args:
        engines: by name, which stay open; by default the demo model as `demo`.
        options: of `Service`.
    """
    with contextlib.ExitStack() as opened:
        if engines is None:
            engines = {"demo": opened.enter_context(sdengine.load("demo"))}
        service = Service(engines, **options)
        app = create_app(service, drain_seconds=5.0)
        config = uvicorn.Config(app, port=0, log_level="error", access_log=False, ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}", service
        finally:
            server.should_exit = True
            thread.join()
