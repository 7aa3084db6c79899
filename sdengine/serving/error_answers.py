"""Answers to errors: status and body, in the shape that the clients of each API read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse

from sdengine.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    OutOfMemoryError,
    SdengineError,
    UnsupportedShapeError,
)
from sdengine.serving.refusals import BusyError, DrainingError

_WEB_UI_PATHS = ("/sdapi/", "/internal/", "/controlnet/")
_OPENAI_PATHS = ("/v1/",)
_DRAINING_SECONDS = 5
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]]{0,80}")
# What OpenAI's clients know errors by, beside the status.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES = {
    "BusyError": "rate_limit_exceeded",
    "ConfigError": "invalid_value",
    "NotFound": "not_found",
    "TooLarge": "request_too_large",
    "Unauthorized": "invalid_api_key",
    "UnsupportedShapeError": "invalid_value",
}
_WORTH_ANOTHER_TRY = (408, 429, 503)


class HTTPError(SdengineError):
    """Report what is wrong with the call itself.

    Args:
        status: of HTTP.
        message: for people.
        kind: for programs.
        headers: of the answer.
        field: of the request that is wrong; "" where it is none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or type(self).__name__
        self.headers = dict(headers or {})
        self.field = field


@dataclass(frozen=True)
class Answer:
    """What is said of an error.

    Args:
        status: of HTTP.
        kind: for programs.
        message: for people.
        field: of the request that is wrong; "" where it is none.
        headers: of the answer.
    """

    status: int
    kind: str
    message: str
    field: str
    headers: Mapping[str, str]


def answer_of(error: Exception) -> Answer:
    """Return what is said of an error; of a fault of our own only that it happened.

    What would fail again has a status of 400, so that no client tries it again by itself.
    """
    kind, message = type(error).__name__, str(error)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPError):
        return Answer(error.status, error.kind, message, error.field, error.headers)
    if isinstance(error, BusyError):
        return Answer(429, kind, message, "", {"Retry-After": str(error.retry_after)})
    if isinstance(error, DrainingError):
        return Answer(503, kind, message, "", {"Retry-After": str(_DRAINING_SECONDS)})
    if isinstance(error, (ConfigError, UnsupportedShapeError)):
        head, colon, _ = message.partition(":")
        field = head.strip("'") if colon else ""
        return Answer(400, kind, message, field if _FIELD.fullmatch(field) else "", headers)
    if isinstance(error, (AdapterError, CheckpointError, OutOfMemoryError)):
        return Answer(400, kind, message, "", headers)
    if isinstance(error, SdengineError):
        return Answer(500, kind, message, "", headers)
    return Answer(500, "InternalError", "the server failed; its log says more.", "", headers)


def body_of(path: str, answer: Answer) -> dict[str, Any]:
    """Return the body of an answer as the clients of a path read it."""
    if path.startswith(_WEB_UI_PATHS):
        return {
            "error": answer.kind,
            "detail": answer.message,
            "body": "",
            "errors": answer.message,
        }
    if path.startswith(_OPENAI_PATHS):
        kind = "server_error" if answer.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": answer.message,
                "type": _OPENAI_TYPES.get(answer.status, kind),
                "param": answer.field or None,
                "code": _OPENAI_CODES.get(answer.kind, answer.kind),
            }
        }
    told: dict[str, Any] = {"type": answer.kind, "message": answer.message}
    return {"error": {**told, "field": answer.field} if answer.field else told}


def response_of(path: str, error: Exception) -> JSONResponse:
    """Return the response to a call of a path that failed."""
    answer = answer_of(error)
    headers = dict(answer.headers)
    if path.startswith(_OPENAI_PATHS):  # its clients would try more of them again by themselves
        headers["x-should-retry"] = "true" if answer.status in _WORTH_ANOTHER_TRY else "false"
    return JSONResponse(body_of(path, answer), answer.status, headers)
