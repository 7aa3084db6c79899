"""Errors in the shape that OpenAI's clients read, and whether those shall try again."""

from __future__ import annotations

import json

import pytest

from sdengine.errors import ConfigError, NonFiniteError, OutOfMemoryError, UnsupportedShapeError
from sdengine.serving.error_answers import HTTPError, response_of
from sdengine.serving.refusals import BusyError, DrainingError

PATH = "/v1/images/generations"


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code", "retry"),
    [
        (ConfigError("n: 0 is"), 400, "invalid_request_error", "n", "invalid_value", False),
        (ConfigError("'x': no"), 400, "invalid_request_error", "x", "invalid_value", False),
        (ConfigError("image[1]: no"), 400, "invalid_request_error", "image[1]", None, False),
        (ConfigError("n, m: both"), 400, "invalid_request_error", None, None, False),
        (ConfigError("no field"), 400, "invalid_request_error", None, None, False),
        (UnsupportedShapeError("size"), 400, "invalid_request_error", None, None, False),
        (OutOfMemoryError("a"), 400, "invalid_request_error", None, "OutOfMemoryError", False),
        (HTTPError(404, "m", "model_not_found", field="model"), 404, "invalid_request_error",
         "model", "model_not_found", False),
        (HTTPError(401, "a", "Unauthorized"), 401, "authentication_error", None,
         "invalid_api_key", False),
        (HTTPError(408, "a", "Timeout"), 408, "invalid_request_error", None, "Timeout", True),
        (HTTPError(409, "a", "Cancelled"), 409, "invalid_request_error", None, "Cancelled", False),
        (BusyError("a", 7, "queue"), 429, "rate_limit_error", None, "rate_limit_exceeded", True),
        (DrainingError("a"), 503, "server_error", None, "DrainingError", True),
        (NonFiniteError("a"), 500, "server_error", None, "NonFiniteError", False),
        (RuntimeError("secret"), 500, "server_error", None, "InternalError", False),
    ],
)  # fmt: skip
def test_errors(
    error: Exception, status: int, kind: str, param: str | None, code: str | None, retry: bool
) -> None:
    response = response_of(PATH, error)
    told = json.loads(bytes(response.body))["error"]
    assert (response.status_code, told["type"], told["param"]) == (status, kind, param)
    assert code is None or told["code"] == code
    assert response.headers["x-should-retry"] == ("true" if retry else "false")
    assert "secret" not in told["message"]


def test_a_full_queue_says_when_to_come_again() -> None:
    assert response_of(PATH, BusyError("a", 7, "queue")).headers["retry-after"] == "7"


def test_other_apis_say_nothing_of_trying_again() -> None:
    assert "x-should-retry" not in response_of("/api/v1/jobs", ConfigError("a")).headers
