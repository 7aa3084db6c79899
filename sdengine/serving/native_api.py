"""Native API: submit a request, watch it, fetch its pictures, cancel it; nothing waits for long."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from numpy.typing import NDArray
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.images.result import Result
from sdengine.request.fields import Integer
from sdengine.serving.catalogue import KINDS
from sdengine.serving.error_answers import HTTPError, answer_of, body_of
from sdengine.serving.jobs import COMPLETED, Job
from sdengine.serving.payload import read_payload
from sdengine.serving.payload_schema import payload_schema
from sdengine.serving.served import served
from sdengine.serving.service import Service

router = APIRouter(prefix="/api/v1", tags=["native"])
_KEEP_ALIVE_SECONDS = 10.0
KIND = "job"  # of the jobs that this API makes, whose results are asked for afterwards
_SUBMITTED = ("request", "bundle", "preview_every")
_JobId = Annotated[str, Path(max_length=100)]


@router.post(
    "/jobs",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["request"],
                        "additionalProperties": False,
                        "properties": {
                            "request": payload_schema(),
                            "bundle": {"type": "string"},
                            "preview_every": {"type": "integer", "minimum": 0, "maximum": 1000},
                        },
                    }
                }
            },
        }
    },
)
async def submit(request: Request) -> JSONResponse:
    """Let a request wait for its turn, and return its job at once."""
    service = served(request)
    content = await _json_object(request)
    for name in content.keys() - set(_SUBMITTED):
        raise ConfigError(f"{name[:80]!r}: no such field; there are {', '.join(_SUBMITTED)}.")
    bundle = content.get("bundle", "")
    if not isinstance(bundle, str):
        raise ConfigError.for_field("bundle", bundle, "a name")
    every = Integer(0, 1000)("preview_every", content.get("preview_every", 0))
    fields = content.get("request")
    job = await service.submit(
        lambda: read_payload(fields, service.catalogue, service.pictures),  # type: ignore[arg-type]
        request.state.owner,
        bundle=bundle,
        preview_every=every,
    )
    return JSONResponse(_described(service, job), 202, {"Location": f"/api/v1/jobs/{job.id}"})


@router.get("/jobs")
async def jobs(request: Request) -> JSONResponse:
    """List the client's jobs, those that are over for as long as they are kept."""
    service = served(request)
    found = [_described(service, job) for job in service.jobs.of(request.state.owner)]
    return JSONResponse({"jobs": found})


@router.get("/jobs/{job_id}")
async def status(request: Request, job_id: _JobId) -> JSONResponse:
    """Say how far a job is."""
    return JSONResponse(_described(served(request), _job(request, job_id)))


@router.delete("/jobs/{job_id}")
async def cancel(request: Request, job_id: _JobId) -> JSONResponse:
    """Cancel a job: at once where it waits, within a step where it runs."""
    service, job = served(request), _job(request, job_id)
    service.cancel(job)
    return JSONResponse(_described(service, job), 200 if job.is_over else 202)


@router.get("/jobs/{job_id}/result")
async def result(
    request: Request, job_id: _JobId, images: Annotated[bool, Query()] = True
) -> JSONResponse:
    """Return the pictures of a job in base64, with all that was asked and how it went.

    With `images=false` there are no pictures in it, for those who fetch each as a file.
    """
    job = _job(request, job_id)
    made = _result(job)
    encoded = {"images": await asyncio.to_thread(_encoded, made)} if images else {}
    return JSONResponse(
        {
            **_described(served(request), job),
            **encoded,
            "seeds": list(made.seeds),
            "request": made.request.to_dict(),
            "parameters": [made.parameters(i) for i in range(len(made.arrays))],
            "model": made.provenance.model,
            "precision": made.provenance.precision,
            "timings": made.timings.to_dict(),
            "warnings": list(made.warnings),
            "notes": list(made.notes),
        }
    )


@router.get("/jobs/{job_id}/images/{number}", response_class=Response)
async def image(
    request: Request, job_id: _JobId, number: Annotated[int, Path(ge=0, le=1000)]
) -> Response:
    """Return one picture of a job as a PNG file with its metadata; the first one is 0."""
    made = _result(_job(request, job_id))
    if number >= len(made.arrays):
        raise HTTPError(404, f"number: the job has {len(made.arrays)} pictures.", "NotFound")
    return Response(await asyncio.to_thread(made.png, number), media_type="image/png")


@router.get("/jobs/{job_id}/events", response_class=StreamingResponse)
async def events(
    request: Request, job_id: _JobId, previews: Annotated[bool, Query()] = True
) -> StreamingResponse:
    """Stream what happens to a job as server-sent events: `status`, `preview`, and `end`, the last.

    The data of each is JSON; that of `preview` has `number` and `image`, a PNG in base64 of the
    pictures side by side, small.
    """
    job = _job(request, job_id)
    stream = _events(served(request), job, previews)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


@router.get("/info")
async def info(request: Request) -> JSONResponse:
    """Say what the server has: bundles, samplers, names of files, limits.

    `file_names` has for each kind the file that a name stands for, without the folder it lies in.
    """
    from sdengine.request.control import CONTROL_TYPES
    from sdengine.request.preprocessors import PREPROCESSORS
    from sdengine.samplers import SAMPLERS, SCHEDULES

    service = served(request)
    return JSONResponse(
        {
            "bundles": {name: _bundle(service, name) for name in service.engines},
            "samplers": list(SAMPLERS),
            "schedules": list(SCHEDULES),
            "labels": {
                **{name: one.label for name, one in SAMPLERS.items()},
                **{name: one.label for name, one in SCHEDULES.items()},
            },
            "preprocessors": [one.name for one in PREPROCESSORS.values() if one.in_requests],
            "control_types": list(CONTROL_TYPES),
            **{f"{kind}s": list(service.catalogue.files(kind)) for kind in KINDS},
            "file_names": {f"{kind}s": _file_names(service, kind) for kind in KINDS},
            "limits": vars(service.limits),
        }
    )


def _bundle(service: Service, name: str) -> dict[str, Any]:
    engine = service.engines[name]
    manifest = engine.bundle.manifest
    return {
        "model": manifest.source.name,
        "task": manifest.architecture.task,
        "precision": engine.precision,
        "backend": engine.backend.name,
        "defaults": manifest.defaults.model_dump(),
        "size_multiple": manifest.size_multiple,
        "controls": list(manifest.architecture.controls),
        "control_kinds": {
            name: control.kind for name, control in manifest.architecture.controls.items()
        },
        "embeddings": [one.name for one in engine.embeddings],
        "resolutions": [list(size) for size in manifest.resolutions],
        "max_batch": manifest.max_batch,
    }


def _file_names(service: Service, kind: str) -> dict[str, str]:
    folder = service.catalogue.folders.get(kind)
    files = service.catalogue.files(kind)
    return {} if folder is None else {n: p.relative_to(folder).as_posix() for n, p in files.items()}


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        content = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ConfigError("request: it is not valid JSON.") from None
    if not isinstance(content, dict):
        raise ConfigError("request: its JSON is not an object of fields by name.")
    return content


def _job(request: Request, job_id: str) -> Job:
    job = served(request).jobs.get(job_id, request.state.owner)
    if job is None:
        raise HTTPError(404, f"id: there is no job {job_id[:100]!r}, or no longer.", "NotFound")
    return job


def _result(job: Job) -> Result:
    if job.error is not None:
        raise job.error
    if job.status != COMPLETED or job.result is None:
        raise HTTPError(409, f"id: the job is {job.status}; it has no pictures.", "NotCompleted")
    job.is_fetched = True
    return job.result


def _described(service: Service, job: Job) -> dict[str, Any]:
    told = job.described(service.position(job))
    if job.error is not None:
        told["error"] = body_of("", answer_of(job.error))["error"]
    return told


def _encoded(made: Result) -> list[str]:
    return [base64.b64encode(made.png(i)).decode() for i in range(len(made.arrays))]


async def _events(service: Service, job: Job, previews: bool) -> AsyncIterator[str]:
    told: dict[str, Any] | None = None
    shown = 0
    while True:
        now = _described(service, job)
        if job.is_over:
            yield _event("end", now)
            return
        if now != told:
            told = now
            yield _event("status", now)
            continue  # it may have gone on meanwhile
        if previews and job.preview_number > shown and job.preview is not None:
            shown, arrays = job.preview_number, job.preview
            encoded = await asyncio.to_thread(preview_png, arrays)
            yield _event("preview", {"number": shown, "image": base64.b64encode(encoded).decode()})
            continue  # it may have gone on meanwhile
        if not await job.changed(_KEEP_ALIVE_SECONDS):
            yield ": still there\n\n"


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def preview_png(arrays: NDArray[np.uint8]) -> bytes:
    """Return pictures [B,h,w,3] side by side as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(arrays), axis=1)).save(buffer, "PNG")
    return buffer.getvalue()
