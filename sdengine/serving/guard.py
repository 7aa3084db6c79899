"""Guard before the server: who asks, from where, how large and how slow; request ids and logs."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdengine.serving.error_answers import HTTPError, response_of
from sdengine.serving.refusals import BusyError
from sdengine.serving.service import Service
from sdengine.serving.tokens import LOCAL

_log = logging.getLogger("sdengine.serving.access")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What says nothing of anybody's requests.
_OPEN_PATHS = frozenset({"/", "/health", "/ready"})
_OPEN_PREFIXES = ("/page/", "/v1/images/files/")  # files have names that nobody can guess
_MOST_VALUES = 200_000  # of a JSON body; pictures in base64 are one each
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware that stands before everything else.

    It holds a body before the rest sees it, bounded in size and time, says who asks as
    `scope["state"]["owner"]`, and writes one line of log a request.

    Args:
        app: that serves what passes.
        service: whose limits, tokens and metrics hold.
        hosts: names of this machine that a request may be addressed to, and a page may come from;
            None for any. Without tokens they keep pages of other sites, and names that were made to
            lead here, from asking in the user's name.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str] | None) -> None:
        self._app = app
        self._service = service
        self._hosts = hosts
        self._held = 0
        self._of_owners: dict[str, int] = {}
        service.metrics.watch("body_bytes", lambda: self._held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event as ASGI says."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex[:16]
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state.update(owner="", request_id=request_id)
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                took = time.monotonic() - began
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-process-time", f"{took:.4f}".encode()),
                ]
            await send(message)

        held = _Held(self, state)
        try:
            try:
                self._check_place(headers)
                state["owner"] = self._owner(scope["method"], scope["path"], headers)
                body = b""
                if scope["method"] not in _WITHOUT_BODY:
                    self._check_length(headers)
                    body = await self._read(receive, held)
                    _check_values(body)
            except (HTTPError, BusyError) as error:
                self._service.metrics.rejected(_reason(error))
                await _refused(scope["path"], error)(scope, receive, answer)
            else:
                await self._app(scope, _again(body, receive), answer)
        finally:
            held.release()
            self._say(scope, request_id, str(state["owner"]), status, time.monotonic() - began)

    def _check_place(self, headers: dict[str, str]) -> None:
        if self._hosts is None:
            return
        host = _without_port(headers.get("host", ""))
        if host not in self._hosts:
            message = f"host: {host[:100]!r} is not a name of this server."
            raise HTTPError(421, message, "MisdirectedRequest")
        origin = headers.get("origin", "")
        if origin and _host_of(origin) not in self._hosts:
            message = f"origin: pages of {origin[:100]!r} may not ask this server."
            raise HTTPError(403, message, "ForeignOrigin")

    def _owner(self, method: str, path: str, headers: dict[str, str]) -> str:
        if not len(self._service.tokens):
            return LOCAL
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES)
        if is_open and method in _WITHOUT_BODY:  # nobody unknown shall have a body held
            return ""
        token = self._service.tokens.of(_secret(headers.get("authorization", "")))
        if token is None:
            message = "authorization: give a token of this server, as Bearer, or as the password."
            raise HTTPError(401, message, "Unauthorized", {"WWW-Authenticate": "Bearer"})
        return token.name

    def _check_length(self, headers: dict[str, str]) -> None:
        """Refuse a body that is declared too large, or in two ways."""
        declared, most = headers.get("content-length", ""), self._service.limits.max_body_bytes
        if not declared:
            return
        if not declared.isdigit() or len(declared) > 18:
            raise HTTPError(400, "content-length: it is no number.", "BadRequest")
        if "transfer-encoding" in headers:
            message = "content-length: give it or transfer-encoding, not both."
            raise HTTPError(400, message, "BadRequest", {"Connection": "close"})
        if int(declared) > most:
            raise _too_large(declared, most)

    def take(self, owner: str, count: int) -> None:
        """Count bytes of a body as held; a token may have half of what all may.

        Raises:
            BusyError: there is no room for them.
        """
        most = self._service.limits.max_bodies_bytes
        share = most // 2 if len(self._service.tokens) else most
        if self._held + count > most or self._of_owners.get(owner, 0) + count > share:
            message = "the bodies of other requests take all the memory for them. Try again in 1 s."
            raise BusyError(message, 1, "bodies")
        self.give_back(owner, -count)

    def give_back(self, owner: str, count: int) -> None:
        """Count bytes as held no longer."""
        self._held -= count
        left = self._of_owners.get(owner, 0) - count
        if left:
            self._of_owners[owner] = left
        else:
            self._of_owners.pop(owner, None)

    async def _read(self, receive: Receive, held: _Held) -> bytes:
        limits = self._service.limits
        pieces = []

        async def read() -> None:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HTTPError(400, "the client went away.", "Disconnected")
                piece = message.get("body", b"")
                if held.count + len(piece) > limits.max_body_bytes:
                    raise _too_large(f"more than {limits.max_body_bytes}", limits.max_body_bytes)
                held.add(len(piece))
                pieces.append(piece)
                if not message.get("more_body", False):
                    return

        try:
            await asyncio.wait_for(read(), limits.body_seconds)
        except asyncio.TimeoutError:
            message = f"the body did not come within {limits.body_seconds} s."
            raise HTTPError(408, message, "Timeout", {"Connection": "close"}) from None
        return b"".join(pieces)

    def _say(self, scope: Scope, request_id: str, owner: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._service.metrics.answered(route or "none", method, status, seconds)
        told = {
            "request_id": request_id,
            "owner": owner,
            "method": method,
            "path": scope["path"][:200],
            "status": status,
            "ms": round(1000 * seconds, 2),
        }
        _log.info("%(method)s %(path)s %(status)d", told, extra={"told": told})


def _check_values(body: bytes) -> None:
    """Refuse JSON of so many values that to read them would hold everything else up."""
    if body[:64].lstrip()[:1] in (b"{", b"["):
        count = sum(map(body.count, (b",", b"[", b"{")))
        if count > _MOST_VALUES:
            message = f"body: its JSON has about {count} values; at most {_MOST_VALUES} are read."
            raise HTTPError(400, message, "TooManyValues")


class _Held:
    """Bytes of one body, counted as they come.

    Args:
        guard: that counts them.
        state: of the request, which says whose they are.
    """

    def __init__(self, guard: Guard, state: MutableMapping[str, Any]) -> None:
        self._guard, self._state = guard, state
        self.count = 0

    def add(self, count: int) -> None:
        self._guard.take(self._state["owner"], count)
        self.count += count

    def release(self) -> None:
        self._guard.give_back(self._state["owner"], self.count)
        self.count = 0


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def _too_large(shown: str, most: int) -> HTTPError:
    message = f"body: {shown} bytes; at most {most} are accepted."
    return HTTPError(413, message, "TooLarge", {"Connection": "close"})


def _reason(error: HTTPError | BusyError) -> str:
    return error.reason if isinstance(error, BusyError) else str(error.status)


def _refused(path: str, error: Exception) -> Response:
    return response_of(path, error)


def _host_of(origin: str) -> str:
    try:
        return _without_port(urlsplit(origin).netloc)
    except ValueError:  # as of half an IPv6 address
        return ""


def _without_port(host: str) -> str:
    """Return a host's name in small letters; an IPv6 address keeps its brackets."""
    name = host.strip().lower().rpartition("@")[2]
    end = name.rfind(":")
    return name if end < name.rfind("]") or end < 0 else name[:end]


def _secret(authorization: str) -> str:
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            return ""
        return given.partition(":")[2]
    return ""


def _again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """Return a `receive` that first gives a body that was read, then what the client does."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give
