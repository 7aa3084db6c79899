"""The `parameters` text of image tools: written for them, and read where nothing better is there.

Source: the text of the widely used web UI: the prompt, a line that begins with "Negative prompt:",
a line of `key: value` pairs, values with commas, colons or line ends quoted as in JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.request import Request

_NEGATIVE = "Negative prompt:"
_MAX_PAIRS_CHARACTERS = 1 << 16
_MAX_NAMED = 20

_WHOLE = re.compile(r"[0-9]{1,20}")
_REAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,3})?")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_PAIR = re.compile(r'([^:,"]{1,60}):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_HASH = re.compile(r"[0-9a-f]{8,64}")

_NUMBERS = {
    "Steps": ("steps", _WHOLE),
    "CFG scale": ("guidance_scale", _REAL),
    "Seed": ("seed", _WHOLE),
    "Variation seed": ("variation_seed", _WHOLE),
    "Variation seed strength": ("variation_strength", _REAL),
    "Clip skip": ("clip_skip", _WHOLE),
    "Eta": ("eta", _REAL),
    "Eta DDIM": ("eta", _REAL),
    "Sigma churn": ("s_churn", _REAL),
    "Sigma tmin": ("s_tmin", _REAL),
    "Sigma tmax": ("s_tmax", _REAL),
    "Sigma noise": ("s_noise", _REAL),
    "CFG Rescale": ("guidance_rescale", _REAL),
    "CFG Rescale φ": ("guidance_rescale", _REAL),
}
_SIZES = {"Size": ("width", "height"), "Seed resize from": ("seed_width", "seed_height")}
_EMPHASIS = {"Original": "original", "No norm": "no_norm", "Ignore": "none", "None": "literal"}
_CHOICES = {
    "RNG": ("noise", {"CPU": "cpu", "GPU": "cuda", "NV": "cuda"}),
    "Emphasis": ("emphasis", _EMPHASIS),
}
# The web UI's own names; "Automatic" is the sampler's default.
_SCHEDULES = {"Automatic": None, "Uniform": "normal", "DDIM": "ddim_uniform"}
_NOT_OF_THE_REQUEST = {"Model hash", "Model", "Version", "Hashes", "Sampler", "Schedule type"}


@dataclass(frozen=True)
class Parameters:
    """What was read from a text.

    Args:
        fields: of `Request`, each of them acceptable.
        model_hash: first digits of the checkpoint's SHA-256; "" if the text names none.
        not_understood: keys without a counterpart, or with a value that none accepts.
    """

    fields: dict[str, Any]
    model_hash: str
    not_understood: tuple[str, ...]


def parameters_text(request: Request, model: str, model_hash: str) -> str:
    """Describe one image in the text form that image tools read.

    Args:
        request: of that image alone.
        model, model_hash: name and SHA-256 of the checkpoint.
    """
    from sdengine.samplers import SAMPLERS, SCHEDULES
    from sdengine.version import __version__

    lines = [str(request.prompt)]
    if request.negative_prompt:
        lines.append(f"{_NEGATIVE} {request.negative_prompt}")
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": SAMPLERS[request.sampler].label,
        "Schedule type": SCHEDULES[request.schedule].label,
        "CFG scale": request.guidance_scale,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model_hash[:10],
        "Model": model,
    }
    if request.variation_strength:
        pairs["Variation seed"] = request.variation_seed
        pairs["Variation seed strength"] = request.variation_strength
    if request.seed_width is not None:
        pairs["Seed resize from"] = f"{request.seed_width}x{request.seed_height}"
    pairs |= {
        "Clip skip": request.clip_skip,
        "Eta DDIM" if request.sampler == "ddim" else "Eta": request.eta,
        "Sigma churn": request.s_churn,
        "Sigma tmin": request.s_tmin,
        "Sigma tmax": request.s_tmax,
        "Sigma noise": request.s_noise,
        "CFG Rescale": request.guidance_rescale or None,
    }
    if request.emphasis != "original":
        labels = {name: label for label, name in _EMPHASIS.items()}
        pairs["Emphasis"] = labels[request.emphasis]
    pairs["RNG"] = {"cpu": "CPU", "cuda": "NV"}[request.noise]
    pairs["Version"] = f"sdengine {__version__}"
    shown = (f"{key}: {_value_text(value)}" for key, value in pairs.items() if value is not None)
    return "\n".join([*lines, ", ".join(shown)])


def parse_parameters(text: str) -> Parameters:
    """Read the text of any tool, as far as it has counterparts here.

    A text with pairs but without `RNG` means the noise of a CUDA device, the web UI's default.
    """
    *lines, last = text.strip().split("\n")
    pairs = _pairs(last)
    if not pairs:
        lines.append(last)
    prompt, negative = _prompts(lines)
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    left: list[str] = []
    for key, value in pairs.items():
        if key not in _NOT_OF_THE_REQUEST:
            found = _acceptable(_counterparts(key, value))
            values |= found
            if not found:
                left.append(key)
    found, unknown = _sampler_names(pairs)
    values |= found
    left += unknown
    if pairs:
        values.setdefault("noise", "cuda")
    if "variation_seed" not in values and values.pop("variation_strength", 0):
        left.append("Variation seed strength")
    shown = tuple(key if key.isprintable() else ascii(key) for key in left[:_MAX_NAMED])
    given_hash = pairs.get("Model hash", "").lower()
    return Parameters(values, given_hash if _HASH.fullmatch(given_hash) else "", shown)


def _pairs(line: str) -> dict[str, str]:
    if not re.match(r"Steps: [0-9]", line) or len(line) > _MAX_PAIRS_CHARACTERS:
        return {}
    return {key.strip(): _unquoted(value.strip()) for key, value in _PAIR.findall(line)}


def _prompts(lines: list[str]) -> tuple[str, str]:
    for index, line in enumerate(lines):
        if line.startswith(_NEGATIVE):
            negative = [line.removeprefix(_NEGATIVE), *lines[index + 1 :]]
            return "\n".join(lines[:index]).strip(), "\n".join(negative).strip()
    return "\n".join(lines).strip(), ""


def _counterparts(key: str, value: str) -> dict[str, Any]:
    if key in _NUMBERS:
        name, kind = _NUMBERS[key]
        if kind.fullmatch(value):
            return {name: int(value) if kind is _WHOLE else float(value)}
    elif key in _SIZES and (size := _SIZE.fullmatch(value)):
        return {name: int(side) for name, side in zip(_SIZES[key], size.groups(), strict=True)}
    elif key in _CHOICES:
        name, names = _CHOICES[key]
        if value in names:
            return {name: names[value]}
    return {}


def _acceptable(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values if a request takes them, or nothing."""
    complete = {"prompt": "", "variation_seed": 0, **values}
    try:
        Request(**complete)
    except ConfigError:
        return {}
    return values


def _sampler_names(pairs: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of sampler and schedule, and the keys that name unknown ones."""
    from sdengine.samplers import resolve_names

    if "Sampler" not in pairs:
        return {}, []
    label = pairs.get("Schedule type")
    schedule = _SCHEDULES.get(label, label) if label is not None else None
    for tried, unknown in ((schedule, []), (None, ["Schedule type"])):
        try:
            found = resolve_names(pairs["Sampler"], tried)
        except ConfigError:
            continue
        return dict(zip(("sampler", "schedule"), found, strict=True)), unknown
    return {}, ["Sampler"]


def _value_text(value: str | float) -> str:
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(value)
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if isinstance(found, str) else value
    return value
