"""Progress of the web UI's tasks: each client sees and stops its own alone."""

from __future__ import annotations

import base64
import time
from typing import Any

import numpy as np

from sdengine.serving.jobs import GENERATING, Job
from sdengine.serving.native_api import preview_png
from sdengine.serving.service import Service

KINDS = ("txt2img", "img2img")


def own_jobs(service: Service, owner: str) -> list[Job]:
    """Return an owner's jobs of this API that are not over: those that run, then in their turns."""
    jobs = [job for job in service.jobs.of(owner) if job.kind in KINDS and not job.is_over]
    turns = {job.id: service.position(job) for job in jobs}
    return sorted(jobs, key=lambda job: -1 if (turn := turns[job.id]) is None else turn)


def stop(service: Service, owner: str) -> None:
    """End what an owner's clients see as running: all that runs, or else what comes next."""
    jobs = own_jobs(service, owner)
    for job in [one for one in jobs if one.status == GENERATING] or jobs[:1]:
        service.cancel(job)


def shown_progress(job: Job | None, count: int, *, with_image: bool) -> dict[str, Any]:
    """Return what /progress says.

    Args:
        job: that is seen; None for nothing.
        count: of the jobs that are not over.
        with_image: also the pictures so far.
    """
    image = preview_text(job) if job is not None and with_image else None
    return {
        "progress": 0.0 if job is None else _share(job),
        "eta_relative": (job.eta_seconds or 0.0) if job is not None else 0.0,
        "state": {
            "skipped": False,
            "interrupted": job is not None and job.cancel.is_set(),
            "stopping_generation": False,
            "job": "" if job is None else job.kind,
            "job_count": count,
            "job_timestamp": _timestamp(0.0 if job is None else job.created),
            "job_no": 0,
            "sampling_step": 0 if job is None else job.step,
            "sampling_steps": 0 if job is None else job.total,
        },
        "current_image": image,
        "textinfo": _textinfo(job),
        "current_task": None if job is None else job.id,
    }


def task_progress(
    job: Job | None, shown: int, *, completed: bool, with_image: bool, position: int | None
) -> dict[str, Any]:
    """Return what /internal/progress says of a task.

    Args:
        job: of it; None of one that is not known, or no longer.
        shown: number of the preview that the client has.
        completed: it was known and is over.
        with_image: send a preview that the client has not.
        position: how many jobs go before it.
    """
    active = job is not None and job.status == GENERATING
    found: dict[str, Any] = {
        "active": active,
        "queued": job is not None and not active and not job.is_over,
        "completed": completed,
        "progress": None,
        "eta": None,
        "live_preview": None,
        "id_live_preview": shown,
        "textinfo": _textinfo(job, position),
    }
    if job is None or not active:
        return found
    found |= {"progress": _share(job), "eta": job.eta_seconds}
    number = job.preview_number
    if with_image and number and number != shown and (text := preview_text(job)):
        found |= {"live_preview": f"data:image/png;base64,{text}", "id_live_preview": number}
    return found


def preview_text(job: Job) -> str | None:
    """Return the pictures so far side by side, a PNG in base64, or None."""
    arrays = job.preview
    if arrays is None:
        return None
    return base64.b64encode(preview_png(np.asarray(arrays))).decode()


def _share(job: Job) -> float:
    return min(1.0, job.step / job.total)


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(seconds)) if seconds else "0"


def _textinfo(job: Job | None, position: int | None = None) -> str | None:
    if job is None or job.status == GENERATING:
        return None
    return "Waiting..." if position is None else f"In queue: {position} before it"
