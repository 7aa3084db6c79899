"""Routes of the web UI's lists and settings: what the server has, and what a client has set."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter, Request
from fastapi.responses import Response

from sdengine import _native
from sdengine.adapters.file import alias_of
from sdengine.images.web_ui_text import HIRES_UPSCALERS
from sdengine.machine import free_memory_bytes
from sdengine.request.hires_fields import LATENT_UPSCALERS, PIXEL_UPSCALERS
from sdengine.serving.served import served
from sdengine.serving.service import Service
from sdengine.serving.web_ui.answers import json_answer
from sdengine.serving.web_ui.checkpoints import Checkpoint, checkpoints, find_checkpoint
from sdengine.serving.web_ui.controlnet_units import SCRIPT
from sdengine.serving.web_ui.fields import json_object
from sdengine.serving.web_ui.owners import owners_of
from sdengine.serving.web_ui.sampler_names import listed_samplers, listed_schedulers
from sdengine.serving.web_ui.settings import CHECKPOINT, checked_settings

router = APIRouter(prefix="/sdapi/v1")
# A client in wide use sends units again with later requests unless the second of these is there.
_SCRIPTS = (SCRIPT, "controlnet m2m")


@router.get("/options")
async def options(request: Request) -> Response:
    """Tell the client's own settings."""
    service = served(request)
    found = owners_of(request).settings(request.state.owner)
    current = _current(service, found[CHECKPOINT])
    found[CHECKPOINT] = current.title
    return json_answer({**found, "sd_checkpoint_hash": current.sha256})


@router.post("/options")
async def set_options(request: Request) -> Response:
    """Change settings for the client's requests to come; those that wait keep theirs."""
    service, owners = served(request), owners_of(request)
    given = checked_settings(json_object(await request.body()), "options")
    if given.get(CHECKPOINT):
        given[CHECKPOINT] = find_checkpoint(service, CHECKPOINT, given[CHECKPOINT]).title
    owners.set(request.state.owner, given)
    return json_answer(None)


@router.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """Tell the flags that clients ask about."""
    return {"api": True, "listen": False, "nowebui": True}


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """List the samplers."""
    return listed_samplers()


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """List the schedules."""
    return listed_schedulers()


@router.get("/upscalers")
async def upscalers(request: Request) -> list[dict[str, Any]]:
    """List what enlarges pictures; how much a file does is known once it was opened."""
    own = [label for label, name in HIRES_UPSCALERS.items() if name in PIXEL_UPSCALERS]
    found = [("None", None, 4), *((label, None, 4) for label in own)]
    files = [(name, name, None) for name in served(request).catalogue.files("upscaler")]
    return [
        {"name": name, "model_name": model, "model_path": None, "model_url": None, "scale": scale}
        for name, model, scale in [*found, *files]
    ]


@router.get("/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """List what enlarges latents."""
    return [{"name": label} for label, own in HIRES_UPSCALERS.items() if own in LATENT_UPSCALERS]


@router.get("/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """List the bundles and the models that may take the place of a bundle's."""
    return [one.described() for one in checkpoints(served(request))]


@router.get("/sd-vae")
async def sd_vae() -> list[dict[str, Any]]:
    """List the autoencoders that could be chosen apart: none."""
    return []


@router.get("/hypernetworks")
async def hypernetworks(request: Request) -> list[dict[str, Any]]:
    """List the hypernetworks that tags may name."""
    files = served(request).catalogue.files("hypernetwork")
    return [{"name": name, "path": path.name} for name, path in files.items()]


@router.get("/loras")
async def loras(request: Request) -> Response:
    """List the LoRAs that tags may name; an alias is what a file's trainer called it."""
    files = served(request).catalogue.files("lora")

    def listed() -> list[dict[str, Any]]:
        return [
            {"name": name, "alias": alias_of(path) or name, "path": path.name, "metadata": {}}
            for name, path in files.items()
        ]

    return json_answer(await asyncio.to_thread(listed))


@router.get("/embeddings")
async def embeddings(request: Request) -> Response:
    """List the textual inversions that prompts may name, and those of no use."""
    engine = served(request).engine()
    loaded = {}
    for one in engine.embeddings:
        width = max(vectors.shape[1] for vectors in one.parts.values())
        loaded[one.name] = _embedding(width, one.num_vectors)
    skipped = {
        Path(file).name: {**_embedding(0, 0), "reason": reason}
        for file, reason in engine.skipped_embeddings.items()
    }
    return json_answer({"loaded": loaded, "skipped": skipped})


@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
async def nothing() -> list[dict[str, Any]]:
    """List what the server has none of."""
    return []


@router.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """List the scripts; the first runs with every request that has units for it."""
    return {"txt2img": list(_SCRIPTS), "img2img": list(_SCRIPTS)}


@router.get("/script-info")
async def script_info() -> list[dict[str, Any]]:
    """Say of them whether they run with every request."""
    return [
        {"name": SCRIPT, "is_alwayson": True, "is_img2img": is_img2img, "args": []}
        for is_img2img in (False, True)
    ]


@router.get("/memory")
async def memory(request: Request) -> dict[str, Any]:
    """Say in bytes how much memory this process may still take, has, and the machine has."""
    free, total = free_memory_bytes(), psutil.virtual_memory().total
    return {
        "ram": {"free": free, "used": psutil.Process().memory_info().rss, "total": total},
        "cuda": _gpu_memory(served(request)),
    }


@router.post("/refresh-checkpoints")
@router.post("/refresh-vae")
@router.post("/refresh-loras")
@router.post("/refresh-embeddings")
async def refresh(request: Request) -> Response:
    """Search the server's folders again for files that came or went."""
    await asyncio.to_thread(_refresh, served(request))
    return json_answer(None)


def _gpu_memory(service: Service) -> dict[str, Any]:
    """Return the memory of the first GPU where a bundle runs on one."""
    is_used = any(one.bundle.manifest.target != "native" for one in service.engines.values())
    if not is_used or not _native.cuda_available()[0]:
        return {"error": "unavailable"}
    free, total = _native.cuda_device().memory_info()
    return {"system": {"free": free, "used": total - free, "total": total}}


def _refresh(service: Service) -> None:
    service.catalogue.refresh()
    folders = service.catalogue.folders
    for engine in service.engines.values():
        for kind, add in (
            ("lora", engine.add_loras),
            ("hypernetwork", engine.add_hypernetworks),
            ("embedding", engine.add_embeddings),
        ):
            if kind in folders:
                add(folders[kind])


def _current(service: Service, given: str) -> Checkpoint:
    return find_checkpoint(service, CHECKPOINT, given) if given else checkpoints(service)[0]


def _embedding(width: int, vectors: int) -> dict[str, Any]:
    told = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    return {**told, "shape": width, "vectors": vectors}
