"""Routes of OpenAI's images API: generations, edits, variations, models, and files by address."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from sdengine.errors import ConfigError
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.openai.answers import answer, files_of, in_base64
from sdengine.serving.openai.fields import EDITS, GENERATIONS, VARIATIONS
from sdengine.serving.openai.files import Files
from sdengine.serving.openai.form import read_form
from sdengine.serving.openai.models import model_object, models, require_model
from sdengine.serving.openai.requests import Call, read_call
from sdengine.serving.openai.running import EventStream, Run
from sdengine.serving.openai.schema import form_body, json_body
from sdengine.serving.served import served

router = APIRouter(prefix="/v1", tags=["openai"])
_FILE_ROUTE = "openai_file"
_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_Name = Annotated[str, Path(max_length=100)]


@router.post("/images/generations", openapi_extra=json_body(GENERATIONS))
async def generations(request: Request) -> Response:
    """Make pictures of a prompt."""
    service, body = served(request), await request.body()
    service.check_room(request.state.owner)
    call = await asyncio.to_thread(lambda: read_call(service, GENERATIONS, _json_object(body)))
    return await _answered(request, call)


@router.post("/images/edits", openapi_extra=form_body(EDITS))
async def edits(request: Request) -> Response:
    """Change pictures: what a mask leaves free, else all of them."""
    return await _answered(request, await _form_call(request, EDITS))


@router.post("/images/variations", openapi_extra=form_body(VARIATIONS))
async def variations(request: Request) -> Response:
    """Make pictures that are like one."""
    return await _answered(request, await _form_call(request, VARIATIONS))


@router.get("/images/files/{name}", name=_FILE_ROUTE, response_class=Response)
async def file(request: Request, name: _Name) -> Response:
    """Return a picture whose address an answer gave; its name is all that one needs."""
    content = _files(request).get(name)
    if content is None:
        raise HTTPError(404, f"file: there is no {name!r}, or no longer.", "NotFound")
    headers = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)


@router.get("/models")
async def list_models(request: Request) -> JSONResponse:
    """List the server's bundles, and the checkpoints that may take a bundle's place."""
    found = [model_object(name, path) for name, path in models(served(request)).items()]
    return JSONResponse({"object": "list", "data": found})


@router.get("/models/{name:path}")
async def one_model(request: Request, name: Annotated[str, Path(max_length=1000)]) -> JSONResponse:
    """Say of a model that it is there."""
    return JSONResponse(model_object(name, require_model(served(request), name)))


async def _form_call(request: Request, kind: str) -> Call:
    service, body = served(request), await request.body()
    service.check_room(request.state.owner)
    content_type = request.headers.get("content-type", "")

    def read() -> Call:
        return read_call(service, kind, *read_form(content_type, body))

    return await asyncio.to_thread(read)


async def _answered(request: Request, call: Call) -> Response:
    run = Run(call, request.state.owner, request.url.path)
    await run.submit(0)
    if call.options.stream:
        return EventStream(run)
    results = await run.results(request)

    def files() -> list[bytes]:
        return [content for result in results for content in files_of(call, result)]

    def in_one() -> bytes:
        return answer(call, results, [in_base64(content) for content in files()])

    if call.options.as_url:
        names = _files(request).put(await asyncio.to_thread(files), call.options.output_format)
        given = [{"url": str(request.url_for(_FILE_ROUTE, name=name))} for name in names]
        body = await asyncio.to_thread(answer, call, results, given)
    else:
        body = await asyncio.to_thread(in_one)  # one turn of a thread, not three
    headers = {"Cache-Control": "no-store"}
    return Response(body, media_type="application/json", headers=headers)


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise ConfigError("request: it is not valid JSON.") from None
    if not isinstance(content, dict):
        raise ConfigError("request: its JSON is not an object of fields by name.")
    return content


def _files(request: Request) -> Files:
    """Return the files of the app, which its first request makes."""
    state = request.app.state
    if not hasattr(state, "openai_files"):
        limits = served(request).limits
        state.openai_files = Files(limits.keep_bytes, limits.keep_seconds)
    files: Files = state.openai_files
    return files
