"""Routes of the web UI's API: pictures from prompts and pictures, and how far they are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from sdengine.errors import CheckpointError, ConfigError, SdengineError
from sdengine.images.result import Result
from sdengine.serving.error_answers import HTTPError
from sdengine.serving.jobs import CANCELLED, GENERATING, Job
from sdengine.serving.served import served
from sdengine.serving.service import Service
from sdengine.serving.waiting import result_of
from sdengine.serving.web_ui import controlnet_routes, list_routes, picture_routes
from sdengine.serving.web_ui.answers import generated, json_answer
from sdengine.serving.web_ui.checkpoints import find_checkpoint
from sdengine.serving.web_ui.fields import Generation, Img2Img, Task, Txt2Img, body_schema, parsed
from sdengine.serving.web_ui.infotext import filled
from sdengine.serving.web_ui.owners import owners_of
from sdengine.serving.web_ui.progress import own_jobs, shown_progress, stop, task_progress
from sdengine.serving.web_ui.requests import Asked
from sdengine.serving.web_ui.settings import CHECKPOINT, checked_settings

router = APIRouter(tags=["web UI"])
for _one in (list_routes.router, picture_routes.router, controlnet_routes.router):
    router.include_router(_one)


@router.post("/sdapi/v1/txt2img", openapi_extra=body_schema(Txt2Img))
async def txt2img(request: Request) -> Response:
    """Make pictures from a prompt, and wait for them."""
    return await _generate(request, Txt2Img)


@router.post("/sdapi/v1/img2img", openapi_extra=body_schema(Img2Img))
async def img2img(request: Request) -> Response:
    """Make pictures from a picture, of which a mask may say what may change."""
    return await _generate(request, Img2Img)


@router.get("/sdapi/v1/progress")
async def progress(
    request: Request, skip_current_image: Annotated[bool, Query()] = False
) -> Response:
    """Say how far the client's own requests are."""
    jobs = own_jobs(served(request), request.state.owner)
    job = jobs[0] if jobs else None
    told = await asyncio.to_thread(
        shown_progress, job, len(jobs), with_image=not skip_current_image
    )
    return json_answer(told)


@router.post("/sdapi/v1/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """End the client's own request that runs, within a step; it is answered without pictures."""
    stop(served(request), request.state.owner)
    return {}


@router.post("/sdapi/v1/skip")
async def skip(request: Request) -> None:
    """End it likewise: all pictures of a request are made at once, so that none is left."""
    stop(served(request), request.state.owner)


@router.post("/internal/progress", openapi_extra=body_schema(Task))
async def internal_progress(request: Request) -> Response:
    """Say how far a task of the client is, by the id that it gave as force_task_id."""
    service, owner = served(request), request.state.owner
    task = parsed(Task, await request.body() or b"{}")
    job = service.jobs.get(task.id_task, owner)
    completed = owners_of(request).has_ended(owner, task.id_task) if job is None else job.is_over
    told = await asyncio.to_thread(
        task_progress,
        job,
        task.id_live_preview,
        completed=completed,
        with_image=task.live_preview,
        position=None if job is None else service.position(job),
    )
    return json_answer(told)


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> dict[str, Any]:
    """Name the client's own tasks that wait."""
    jobs = own_jobs(served(request), request.state.owner)
    waiting = [job.id for job in jobs if job.status != GENERATING]
    return {"size": len(waiting), "tasks": waiting}


async def _generate(request: Request, model: type[Generation]) -> Response:
    service, owner, owners = served(request), request.state.owner, owners_of(request)
    body = await request.body()
    warnings: list[str] = []
    fields = await asyncio.to_thread(lambda: filled(parsed(model, body), warnings))
    own = checked_settings(fields.override_settings, "override_settings", warnings)
    settings = {**owners.settings(owner), **own}
    job, asked = await _submit(service, owner, fields, settings, warnings)
    if not fields.override_settings_restore_afterwards:
        owners.set(owner, own)
    try:
        result = await _result(job, service, request)
    finally:
        service.jobs.forget(job)
        owners.end(owner, job.id)
    return json_answer(await asyncio.to_thread(generated, asked, job, result))


async def _submit(
    service: Service,
    owner: str,
    fields: Generation,
    settings: dict[str, Any],
    warnings: Sequence[str],
) -> tuple[Job, Asked]:
    """Let a request wait, for the first bundle that its model fits."""
    bundles, model = list(service.engines), ""
    if settings[CHECKPOINT]:
        found = find_checkpoint(service, CHECKPOINT, settings[CHECKPOINT])
        bundles = [found.bundle] if found.bundle else bundles
        model = "" if found.bundle else found.name
    every = settings["show_progress_every_n_steps"] if settings["live_previews_enable"] else 0
    refused: SdengineError | None = None
    for bundle in bundles:
        asked = Asked(fields, settings, service, service.engine(bundle), model, warnings)
        try:
            job = await service.submit(
                asked,
                owner,
                bundle=bundle,
                kind="txt2img" if isinstance(fields, Txt2Img) else "img2img",
                preview_every=max(0, every),
                job_id=fields.force_task_id,
            )
        except (CheckpointError, ConfigError) as error:
            if len(bundles) == 1 or not model:
                raise
            refused = refused or error
        else:
            return job, asked
    assert refused is not None  # there is a bundle
    raise refused


async def _result(job: Job, service: Service, request: Request) -> Result | None:
    """Return a job's result; None where the client itself had it interrupted."""
    try:
        return await result_of(job, service, request)
    except HTTPError as error:
        is_own = job.status == CANCELLED and error.kind == "Cancelled"
        if is_own and not service.is_draining:
            return None
        raise
