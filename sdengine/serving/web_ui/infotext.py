"""Infotext: a text of parameters that fills the fields which a request leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.images.web_ui_text import EMPHASIS, HIRES_UPSCALERS, parse_parameters
from sdengine.request.keywords import WEB_UI_CLIP_SKIP
from sdengine.samplers import SAMPLERS
from sdengine.serving.web_ui.fields import Generation, Img2Img, checked
from sdengine.serving.web_ui.settings import DECODERS, RNG

_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "steps",
    "guidance_scale": "cfg_scale",
    "schedule": "scheduler",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "seed_width": "seed_resize_from_w",
    "seed_height": "seed_resize_from_h",
    "eta": "eta",
    "s_churn": "s_churn",
    "s_tmin": "s_tmin",
    "s_tmax": "s_tmax",
    "s_noise": "s_noise",
    "hires_strength": "denoising_strength",
    "hires_steps": "hr_second_pass_steps",
    "hires_sampler": "hr_sampler_name",
    "hires_schedule": "hr_scheduler",
    "hires_prompt": "hr_prompt",
    "hires_negative_prompt": "hr_negative_prompt",
}
_READ = {
    *_FIELDS,
    *("sampler", "seamless", "hires", "hires_upscaler"),
    *("noise", WEB_UI_CLIP_SKIP, "emphasis", "decoder"),
}


def filled(fields: Generation, warnings: list[str]) -> Generation:
    """Return fields with those of their infotext where the client gave none.

    Args:
        fields: of a body.
        warnings: takes a sentence on what of the text is not understood.

    Raises:
        ConfigError: the text asks for what is not accepted.
    """
    if not fields.infotext:
        return fields
    read = parse_parameters(fields.infotext)
    if read.not_understood:
        keys = ", ".join(read.not_understood)
        warnings.append(f"infotext: not understood and left out: {keys}.")
    if lost := sorted(read.fields.keys() - _READ):
        warnings.append(f"infotext: no field of this API says {', '.join(lost)}; left out.")
    found = {theirs: read.fields[own] for own, theirs in _FIELDS.items() if own in read.fields}
    if "sampler" in read.fields:
        found["sampler_name"] = SAMPLERS[read.fields["sampler"]].label
    if read.fields.get("seamless") == "xy":
        found["tiling"] = True
    if not isinstance(fields, Img2Img):
        found |= _second_pass(read.fields)
    given = fields.model_dump(include=set(fields.model_fields_set))
    own = dict(given.get("override_settings", {}))
    given["override_settings"] = _settings(read.fields) | own
    if {"sampler_name", "sampler_index"} & given.keys():  # whose schedule is the client's too
        found.pop("sampler_name", None)
        found.pop("scheduler", None)
    return checked(type(fields), found | given, "infotext")


def _second_pass(read: Mapping[str, Any]) -> dict[str, Any]:
    target = read.get("hires")
    if target is None:
        return {}
    found: dict[str, Any] = {"enable_hr": True}
    if isinstance(target, tuple):
        found |= dict(zip(("hr_resize_x", "hr_resize_y"), target, strict=True))
    else:
        found["hr_scale"] = target
    labels = {own: label for label, own in HIRES_UPSCALERS.items()}
    if read.get("hires_upscaler") in labels:
        found["hr_upscaler"] = labels[read["hires_upscaler"]]
    return found


def _settings(read: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "noise" in read:
        found[RNG] = "CPU" if read["noise"] == "cpu" else "GPU"
    if WEB_UI_CLIP_SKIP in read:
        found["CLIP_stop_at_last_layers"] = read[WEB_UI_CLIP_SKIP]
    for setting, names in (("emphasis", EMPHASIS), ("sd_vae_decode_method", DECODERS)):
        field = "emphasis" if setting == "emphasis" else "decoder"
        if field in read:
            found[setting] = {own: label for label, own in names.items()}[read[field]]
    return found
