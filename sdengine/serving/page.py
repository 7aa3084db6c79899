"""Page for people at `/`: a few files that stay the same while the server runs; strict headers."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sdengine.serving.error_answers import HTTPError

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parent / "page"
_SCRIPT = "text/javascript; charset=utf-8"
# Everything that is ever read of the folder, whatever else lies there.
FILES: Mapping[str, str] = MappingProxyType(
    {
        "index.html": "text/html; charset=utf-8",
        "style.css": "text/css; charset=utf-8",
        "icon.svg": "image/svg+xml",
        "page.js": _SCRIPT,
        "api.js": _SCRIPT,
        "clipboard.js": _SCRIPT,
        "elements.js": _SCRIPT,
        "form.js": _SCRIPT,
        "gallery.js": _SCRIPT,
        "large_view.js": _SCRIPT,
        "mask_canvas.js": _SCRIPT,
        "picture_field.js": _SCRIPT,
        "progress.js": _SCRIPT,
        "request.js": _SCRIPT,
        "request_texts.js": _SCRIPT,
        "rows.js": _SCRIPT,
        "token_dialog.js": _SCRIPT,
    }
)
# Nothing of other sites, nothing inline, no strings that become markup, and no frames around it.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Return the page."""
    return _answer(request, "index.html")


@router.api_route("/page/{file}", methods=["GET", "HEAD"])
async def part(request: Request, file: str) -> Response:
    """Return one of the files that the page is made of."""
    if file not in FILES:
        raise HTTPError(404, f"file: the page has none called {file[:60]!r}.", "NotFound")
    return _answer(request, file)


def _answer(request: Request, file: str) -> Response:
    content, tag = _content(file)
    headers = {**_HEADERS, "ETag": tag}
    known = request.headers.get("if-none-match", "")
    if tag in (one.strip().removeprefix("W/") for one in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=FILES[file], headers=headers)


@functools.cache
def _content(file: str) -> tuple[bytes, str]:
    """Return a file's content and its ETag."""
    content = (_FOLDER / file).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
