"""HTTP app: every API over one service, as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from sdengine.errors import ConfigError, SdengineError
from sdengine.serving import metrics, native_api, openai, page, web_ui
from sdengine.serving.error_answers import HTTPError, response_of
from sdengine.serving.guard import LOOPBACK, Guard
from sdengine.serving.refusals import BusyError, DrainingError
from sdengine.serving.service import Service
from sdengine.version import __version__


def create_app(
    service: Service, hosts: Collection[str] | None = LOOPBACK, drain_seconds: float = 120.0
) -> ASGIApp:
    """Return the ASGI application of a service, which it starts and ends.

    Args:
        service: not yet started.
        hosts: names that requests may be addressed to; None for any, where tokens are asked for.
        drain_seconds: that requests may still take when the server ends.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.drain(drain_seconds)

    app = FastAPI(
        title="sdengine",
        version=__version__,
        docs_url=None,  # its page would load scripts of other sites
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for router in (native_api.router, web_ui.router, openai.router, page.router):
        app.include_router(router)
    _add_health(app, service)
    _add_error_answers(app, service)
    return Guard(app, service, hosts)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/ready", tags=["health"])
    async def ready() -> Response:
        """Say whether requests are taken: 503 while the server ends."""
        if service.is_draining or not service.is_working:
            status = "draining" if service.is_draining else "failed"
            return JSONResponse({"status": status}, 503)
        return JSONResponse({"status": "ready", "waiting": service.num_waiting})

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def all_metrics() -> Response:
        """Return the metrics as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)


def _add_error_answers(app: FastAPI, service: Service) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, (BusyError, DrainingError)):
            service.metrics.rejected(getattr(error, "reason", "draining"))
        return response_of(request.url.path, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response_of(request.url.path, _of_validation(error))

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:100]!r}: {error.detail}."
        return response_of(
            request.url.path, HTTPError(error.status_code, message, "NotFound", error.headers)
        )

    app.add_exception_handler(SdengineError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(Exception, refused)


def _of_validation(error: RequestValidationError) -> SdengineError:
    first = error.errors()[0]
    place = ".".join(str(part)[:60] for part in first["loc"] if part not in ("body", "query"))
    if first["type"] == "json_invalid":
        return ConfigError("request: it is not valid JSON.")
    return ConfigError.for_field(
        place or "request", first.get("input"), f"what the API says: {first['msg']}"
    )
