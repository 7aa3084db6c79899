"""NovelAI's pictures: what their JSON says of the request.

Source: the text chunks `Description` and `Comment` of its PNG files. The web UI, which reads them
too, takes 2 for their `Clip skip`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.keywords import WEB_UI_CLIP_SKIP
from sdengine.request.request import Request

_CLIP_SKIP = 2
_FIELDS = {
    "steps": "steps",
    "seed": "seed",
    "scale": "guidance_scale",
    "cfg_rescale": "guidance_rescale",
    "width": "width",
    "height": "height",
    "prompt": "prompt",
    "uc": "negative_prompt",
}
_SAMPLERS = {
    "k_euler": "euler",
    "k_euler_ancestral": "euler_a",
    "k_heun": "heun",
    "k_dpm_2": "dpm2",
    "k_dpm_2_ancestral": "dpm2_a",
    "k_lms": "lms",
    "k_dpmpp_2s_ancestral": "dpmpp_2s_a",
    "k_dpmpp_2m": "dpmpp_2m",
    "k_dpmpp_sde": "dpmpp_sde",
    "k_dpmpp_2m_sde": "dpmpp_2m_sde",
    "ddim": "ddim",
    "ddim_v3": "ddim",
    "plms": "pndm",
}
_SCHEDULES = {
    "native": "normal",
    "karras": "karras",
    "exponential": "exponential",
    "polyexponential": "polyexponential",
}
# Keys that say nothing about how the picture looks, or that are off.
_HARMLESS = {
    "request_type",
    "signed_hash",
    "n_samples",
    "version",
    "v4_prompt",
    "v4_negative_prompt",
    "noise_schedule",
    "sampler",
}
_EMPHASIS = re.compile(r"[{}]|[0-9.]::")


def is_comment(content: Mapping[str, Any]) -> bool:
    """Whether an object is such a JSON and not another tool's."""
    return "steps" in content and bool(content.keys() & {"uc", "scale", "sampler"})


def read_comment(content: Mapping[str, Any], description: str) -> tuple[dict[str, Any], list[str]]:
    """Return keywords of `Engine.request`, and what has no counterpart here.

    Args:
        content: of the chunk `Comment`.
        description: of the chunk of that name: the prompt of the first releases.
    """
    fields: dict[str, Any] = {"prompt": description, "negative_prompt": ""}
    left: list[str] = []
    for key, value in content.items():
        if key in _FIELDS:
            taken = _acceptable(_FIELDS[key], value)
            fields |= taken
            left += [] if taken else [key]
        elif key not in _HARMLESS and value not in (None, False, 0, [], {}, ""):
            left.append(key)
    sampler = _SAMPLERS.get(str(content.get("sampler")))
    schedule = _SCHEDULES.get(str(content.get("noise_schedule", "native")))
    if sampler is None:
        left.append("sampler")
    else:
        fields |= {"sampler": sampler, "schedule": schedule or "normal"}
    if schedule is None:
        left.append("noise_schedule")
    for key in ("v4_prompt", "v4_negative_prompt"):
        if _has_characters(content.get(key)):
            left.append(f"{key}'s characters")
    if any(_EMPHASIS.search(fields[name]) for name in ("prompt", "negative_prompt")):
        left.append("NovelAI's emphasis by {} and ::, which is text here")
    return {**fields, WEB_UI_CLIP_SKIP: _CLIP_SKIP}, left


def _acceptable(name: str, value: Any) -> dict[str, Any]:
    try:
        return {name: getattr(Request(**{"prompt": "", name: value}), name)}
    except ConfigError:
        return {}


def _has_characters(structure: Any) -> bool:
    caption = structure.get("caption") if isinstance(structure, dict) else None
    return isinstance(caption, dict) and bool(caption.get("char_captions"))
