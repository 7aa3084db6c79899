"""Answers of the web UI's API: pictures in base64, and all about them as its clients read it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi.responses import Response
from PIL import Image

from sdengine.images.png import encode_png
from sdengine.images.result import Result
from sdengine.images.web_ui_pairs import find_pairs
from sdengine.request.request import Request
from sdengine.samplers import SAMPLERS
from sdengine.serving.jobs import Job
from sdengine.serving.web_ui.controlnet_units import detected_map
from sdengine.serving.web_ui.fields import Generation, Img2Img
from sdengine.serving.web_ui.requests import Asked
from sdengine.version import __version__

_PICTURES = ("init_images", "mask")
# What `info` says in fields of its own; what else a text of parameters has is extra.
_KEYS: tuple[str, ...] = (
    *("Steps", "Sampler", "CFG scale", "Seed", "Size", "Model hash", "Model"),
    *("Denoising strength", "Clip skip", "Version"),
)
_ALL_KEYS = (*_KEYS, "Schedule type", "RNG")
_INTERRUPTED = "it was interrupted before its pictures were whole, and has none."
_NO_FILES = "save_images: it has no effect, because this server keeps no files."


def json_answer(content: Any) -> Response:
    """Return JSON in ASCII, which holds any text that a client sent."""
    return Response(json.dumps(content), media_type="application/json")


def generated(asked: Asked, job: Job, result: Result | None) -> dict[str, Any]:
    """Return the answer to txt2img or img2img; it encodes pictures, so call it in a thread.

    Args:
        asked: what the client asked for.
        job: that served it.
        result: None of one that was interrupted.
    """
    fields = asked.fields
    images: list[str] = []
    if result is not None and fields.send_images:
        images = [_base64(result.png(i)) for i in range(len(result.arrays))]
        images += [
            _base64(encode_png(Image.fromarray(detected_map(one, *_size(job.request))), {}))
            for one, shows in zip(job.request.controls, asked.shows_map, strict=True)
            if shows
        ]
    return {
        "images": images,
        "parameters": _echo(asked, job.request),
        "info": json.dumps(_info(asked, job, result)),
    }


def _info(asked: Asked, job: Job, result: Result | None) -> dict[str, Any]:
    request, fields = job.request, asked.fields
    provenance = asked.engine.provenance if result is None else result.provenance
    count = request.batch_size
    texts = [] if result is None else [result.parameters(i) for i in range(count)]
    variation = request.variation_seed
    if variation is None:  # it had no effect
        variation = request.seeds[0] if fields.subseed == -1 else fields.subseed
    warnings = [*asked.warnings, *(result.warnings if result is not None else ())]
    if fields.save_images:
        warnings.append(_NO_FILES)
    if result is None:
        warnings.append(_INTERRUPTED)
    strength = request.strength if request.image is not None else request.hires_strength
    is_strong = request.image is not None or request.hires is not None
    return {
        "prompt": request.prompts[0],
        "all_prompts": list(request.prompts),
        "negative_prompt": request.negative_prompts[0],
        "all_negative_prompts": list(request.negative_prompts),
        "seed": request.seeds[0],
        "all_seeds": list(request.seeds),
        "subseed": variation,
        "all_subseeds": [variation + i for i in range(count)],
        "subseed_strength": request.variation_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLERS[request.sampler].label,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": fields.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": provenance.model,
        "sd_model_hash": provenance.model_hash[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": request.seed_width or -1,
        "seed_resize_from_h": request.seed_height or -1,
        "denoising_strength": strength if is_strong else None,
        "extra_generation_params": _extra(texts[0]) if texts else {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created)),
        "clip_skip": asked.settings["CLIP_stop_at_last_layers"],
        "is_using_inpainting_conditioning": _is_inpainting(asked),
        "version": f"sdengine {__version__}",
        "interrupted": result is None,
        "warnings": warnings,
        "notes": list(result.notes) if result is not None else [],
    }


def _extra(text: str) -> Mapping[str, str]:
    pairs = find_pairs(text, _ALL_KEYS).values
    return {name: value for name, value in pairs.items() if name not in _KEYS}


def _is_inpainting(asked: Asked) -> bool:
    return asked.engine.bundle.manifest.architecture.task == "inpainting"


def _echo(asked: Asked, request: Request) -> dict[str, Any]:
    """Return the request as it was understood; of what scripts were given only their names."""
    fields: Generation = asked.fields
    told = fields.model_dump(exclude={"script_args", "infotext", "firstpass_image", "latent_mask"})
    told |= {"width": request.width, "height": request.height, "script_args": []}
    told["alwayson_scripts"] = {name: {"args": []} for name in fields.alwayson_scripts}
    if isinstance(fields, Img2Img) and not fields.include_init_images:
        told |= dict.fromkeys(_PICTURES)
    told.pop("include_init_images", None)
    return told


def _size(request: Request) -> tuple[int, int]:
    return request.width, request.height


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
