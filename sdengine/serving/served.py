"""Service of an HTTP request, as the app holds it."""

from __future__ import annotations

from starlette.requests import Request

from sdengine.serving.service import Service


def served(request: Request) -> Service:
    """Return the service that answers a request."""
    service: Service = request.app.state.service
    return service
