"""Web UI text: the `parameters` text of image tools, written for them and read from them.

Source: the text of the widely used web UI: the prompt, a line that begins with "Negative prompt:",
and pairs. Its `Clip skip` counts from the text encoder's last layer, whichever a checkpoint reads.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from sdengine.errors import ConfigError
from sdengine.images.provenance import Provenance
from sdengine.images.web_ui_pairs import find_pairs
from sdengine.inputs.loras import Lora, web_ui_hash
from sdengine.request.control import Control
from sdengine.request.fields import FieldInfo, Interval, Number, OneOrEach
from sdengine.request.hires_fields import HiresField
from sdengine.request.keywords import WEB_UI_CLIP_SKIP
from sdengine.request.picture_fields import HIRES_FIELDS
from sdengine.request.request import FIELDS, Request
from sdengine.samplers import SAMPLERS, SCHEDULES, resolve_names

_NEGATIVE = "Negative prompt:"
_MAX_NAMED = 20

_WHOLE = re.compile(r"[0-9]{1,20}")
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,30})?(?:e[+-]?[0-9]{1,3})?"
_REAL = re.compile(_NUMBER)
_INTERVAL = re.compile(f"({_NUMBER})-({_NUMBER})")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_EMBEDDINGS = "TI hashes"
_LORAS = "Lora hashes"
_NAME_AND_HASH = re.compile(r"\s*([^\s:][^:]{0,200}):\s*([0-9a-f]{8,64})\s*(?:,|$)")

EMPHASIS = {"Original": "original", "No norm": "no_norm", "Ignore": "none", "None": "literal"}
HIRES_UPSCALERS = {
    "Latent": "latent",
    "Latent (antialiased)": "latent_antialiased",
    "Latent (bicubic)": "latent_bicubic",
    "Latent (bicubic antialiased)": "latent_bicubic_antialiased",
    "Latent (nearest)": "latent_nearest",
    "Latent (nearest-exact)": "latent_nearest_exact",
    "Lanczos": "lanczos",
    "Nearest": "nearest",
}
# What reads the value of a field that is no number.
_CHOICES = {
    "noise": {"CPU": "cpu", "GPU": "cuda", "NV": "cuda"},
    "emphasis": EMPHASIS,
    "hires_upscaler": HIRES_UPSCALERS,
    "decoder": {"Full": "vae", "TAESD": "tiny"},
    "seamless": {"True": "xy", "False": "none"},
}
# The web UI's own names; "Automatic" is the sampler's default.
SCHEDULES_OF_WEB_UI = {"Automatic": None, "Uniform": "normal", "DDIM": "ddim_uniform"}
_NOT_OF_THE_REQUEST = {"Model hash", "Model", "Version", "Hashes", "Sampler", "Schedule type"}
# Older web UIs have these in the place of a tag.
_HYPERNETWORK = ("Hypernet", "Hypernet strength")
_NOT_OF_THE_REQUEST |= {_EMBEDDINGS, _LORAS, *_HYPERNETWORK}
_NOT_OF_THE_REQUEST |= {"Hires sampler", "Hires schedule type"}
_NO_SEED = "-1"
# The ControlNet extension's names; diffusers' guess mode is near to the last one.
_MORE_IMPORTANT = "ControlNet is more important"
CONTROL_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": _MORE_IMPORTANT,
    "guess": _MORE_IMPORTANT,
}
CONTROL_RESIZES = {"stretch": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill"}
_FIELDS: dict[str, list[FieldInfo]] = {}  # by label; a size has two
for _info in FIELDS.values():
    for _label in _info.labels:
        _FIELDS.setdefault(_label, []).append(_info)
_KNOWN = {*_FIELDS, *_NOT_OF_THE_REQUEST}


@dataclass(frozen=True)
class Parameters:
    """What was read from a text.

    Args:
        fields: keywords of `Engine.request`, each of them acceptable.
        model_hash: first digits of the checkpoint's SHA-256; "" if the text names none.
        not_understood: keys without a counterpart, or with a value that none accepts.
        embeddings: name and first digits of the SHA-256 of each that was used.
        loras: the same of those that tags in the prompt name, with the web UI's hash; see
            `web_ui_hash`.
    """

    fields: dict[str, Any]
    model_hash: str
    not_understood: tuple[str, ...]
    embeddings: tuple[tuple[str, str], ...] = ()
    loras: tuple[tuple[str, str], ...] = ()


def parameters_text(request: Request, provenance: Provenance) -> str:
    """Describe one image in the text form that image tools read.

    Args:
        request: of that image alone, its sampler and schedule by name.
        provenance: gives the checkpoint and the version.
    """
    tags = [lora.tag() for lora in request.loras or ()]
    tags += [network.tag() for network in request.hypernetworks or ()]
    lines = [" ".join(filter(None, (str(request.prompt), *tags)))]
    if request.negative_prompt:
        lines.append(f"{_NEGATIVE} {request.negative_prompt}")
    pairs: dict[str, Any] = {
        **_labelled(request, "steps", "sampler", "schedule", "guidance_scale", "seed", "width"),
        "Model hash": provenance.model_hash[:10],
        "Model": provenance.model,
    }
    if request.image is not None:
        # Written alone: read without the picture, which no text holds, it would mean nothing.
        pairs["Denoising strength"] = request.strength
    if request.hires is not None:
        pairs |= _labelled(request, "hires_strength", "hires", "hires_steps", "hires_upscaler")
        pairs |= _labelled(request, "hires_sampler", "hires_schedule")
        pairs |= _labelled(request, "hires_prompt", "hires_negative_prompt")
        if request.hires_model is not None:
            pairs["Hires upscaler"] = PurePath(request.hires_model.name).stem or "ONNX"
    if request.variation_strength:
        pairs |= _labelled(request, "variation_seed", "variation_strength")
    if request.clip_skip is not None:
        pairs["Clip skip"] = request.clip_skip + provenance.usual_clip_skip - 1
    pairs |= _labelled(request, "seed_width", "eta")
    pairs |= _labelled(request, "s_churn", "s_tmin", "s_tmax", "s_noise")
    if request.guidance_rescale:
        pairs |= _labelled(request, "guidance_rescale")
    if not request.is_guided_throughout:
        pairs |= _labelled(request, "guidance_interval")
    if request.emphasis != "original":
        pairs |= _labelled(request, "emphasis")
    pairs |= {f"ControlNet {i}": _control(one) for i, one in enumerate(request.controls)}
    if request.embeddings:
        pairs[_EMBEDDINGS] = ", ".join(f"{e.name}: {e.sha256[:10]}" for e in request.embeddings)
    if request.loras:
        pairs[_LORAS] = ", ".join(f"{one.name}: {_lora_hash(one)}" for one in request.loras)
    if request.decoder != "vae":
        pairs |= _labelled(request, "decoder")
    if request.seamless == "xy":  # which axis alone, the web UI cannot say
        pairs |= _labelled(request, "seamless")
    pairs |= _labelled(request, "noise")
    pairs["Version"] = f"sdengine {provenance.version}"
    shown = (f"{key}: {_value_text(value)}" for key, value in pairs.items() if value is not None)
    return "\n".join([*lines, ", ".join(shown)])


def _lora_hash(lora: Lora) -> str:
    return (web_ui_hash(lora.path) if lora.path is not None else "") or lora.sha256[:12]


def _control(control: Control) -> str:
    """Describe a control as the ControlNet extension does; its picture is in no text."""
    pairs = {
        "Module": control.preprocess,
        "Model": control.network,
        "Weight": _value_text(control.scale),
        "Resize Mode": CONTROL_RESIZES[control.resize],
        "Guidance Start": _value_text(control.start),
        "Guidance End": _value_text(control.end),
        "Control Mode": CONTROL_MODES[control.mode],
    }
    return ", ".join(f"{key}: {value}" for key, value in pairs.items())


def _labelled(request: Request, *names: str) -> dict[str, Any]:
    """Return the web UI's values of some fields by its labels, None where there is none."""
    found: dict[str, Any] = {}
    for name in names:
        value, label = getattr(request, name), FIELDS[name].labels[0]
        if name in _CHOICES:
            # Of several labels of a value the last one is the web UI's newest.
            value = {own: theirs for theirs, own in _CHOICES[name].items()}[value]
        elif name.endswith("sampler"):
            value = None if value is None else SAMPLERS[value].label
        elif name.endswith("schedule"):
            value = None if value is None else SCHEDULES[value].label
        elif len(sides := _FIELDS[label]) == 2 and value is not None:
            value = "x".join(str(getattr(request, side.name)) for side in sides)
        elif name == "hires" and isinstance(value, tuple):
            label, value = FIELDS[name].labels[1], "x".join(map(str, value))
        elif name == "hires_steps":
            value = value or None  # as many as the first pass has
        elif name == "guidance_interval":
            value = "-".join(map(_value_text, value))
        elif name == "eta" and request.sampler == "ddim":
            label = "Eta DDIM"
        found[label] = value
    return found


def parse_parameters(text: str) -> Parameters:
    """Read the text of any tool, as far as it has counterparts here.

    A text with pairs but without `RNG` means the noise of a CUDA device, the web UI's default.
    """
    found_pairs = find_pairs(text, _KNOWN)
    pairs = found_pairs.values
    prompt, negative = _prompts(found_pairs.before)
    if name := pairs.get(_HYPERNETWORK[0]):
        prompt = f"{prompt} <hypernet:{name}:{pairs.get(_HYPERNETWORK[1], '1')}>".strip()
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    left: list[str] = []
    for key, value in pairs.items():
        if key not in _NOT_OF_THE_REQUEST and (key, value) != ("Seed", _NO_SEED):
            found = _acceptable(_counterparts(key, value))
            values |= found
            if not found:
                left.append(key)
    found, unknown = _sampler_names(pairs)
    values |= found
    left += unknown
    found, unknown = _hires_names(pairs)
    values |= found
    left += unknown
    if pairs:
        values.setdefault("noise", "cuda")
    if "variation_seed" not in values and values.pop("variation_strength", 0):
        left.append("Variation seed strength")
    if (
        "hires" not in values
    ):  # of a picture that was started from, or an upscaler's of another kind
        lost = [name for name in HIRES_FIELDS if values.pop(name, None) is not None]
        left += [FIELDS[name].labels[0] for name in lost]
    if "clip_skip" in values:
        values[WEB_UI_CLIP_SKIP] = values.pop("clip_skip")
    left = list(dict.fromkeys(left + found_pairs.left))
    shown = tuple(key if key.isprintable() else ascii(key) for key in left[:_MAX_NAMED])
    given_hash = pairs.get("Model hash", "").lower()
    model_hash = given_hash if _HASH.fullmatch(given_hash) else ""
    named = _NAME_AND_HASH.findall(pairs.get(_EMBEDDINGS, ""))
    loras = _NAME_AND_HASH.findall(pairs.get(_LORAS, ""))[:_MAX_NAMED]
    return Parameters(values, model_hash, shown, tuple(named[:_MAX_NAMED]), tuple(loras))


def labelled_values(text: str) -> dict[str, str]:
    """Return the prompts and pairs of any tool's text by the web UI's labels, as they stand there.

    Width and height of `Size` are `Size-1` and `Size-2`, as the web UI tells them.
    """
    found = find_pairs(text, _KNOWN)
    prompt, negative = _prompts(found.before)
    values = {"Prompt": prompt, "Negative prompt": negative, **found.values}
    if size := _SIZE.fullmatch(values.get("Size", "")):
        del values["Size"]
        values |= {"Size-1": size[1], "Size-2": size[2]}
    return values


def _prompts(lines: list[str]) -> tuple[str, str]:
    for index, line in enumerate(lines):
        if line.startswith(_NEGATIVE):
            negative = [line.removeprefix(_NEGATIVE), *lines[index + 1 :]]
            return "\n".join(lines[:index]).strip(), "\n".join(negative).strip()
    return "\n".join(lines).strip(), ""


def _counterparts(key: str, value: str) -> dict[str, Any]:
    infos = _FIELDS.get(key, [])
    names = [info.name for info in infos]
    if len(names) == 2:
        size = _SIZE.fullmatch(value)
        return dict(zip(names, map(int, size.groups()), strict=True)) if size else {}
    for info in infos:
        if info.name in _CHOICES:
            choices = _CHOICES[info.name]
            return {info.name: choices[value]} if value in choices else {}
        if isinstance(info.check, HiresField | OneOrEach) and info.name.startswith("hires"):
            return {info.name: value}
        if isinstance(info.check, Interval):
            ends = _INTERVAL.fullmatch(value)
            return {info.name: tuple(map(float, ends.groups()))} if ends else {}
        if isinstance(info.check, Number):
            return {info.name: float(value)} if _REAL.fullmatch(value) else {}
        return {info.name: int(value)} if _WHOLE.fullmatch(value) else {}
    return {}


def _acceptable(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values if a request takes them, or nothing."""
    needed = {"hires": 2.0} if values.keys() & set(HIRES_FIELDS) else {}
    try:
        request = Request(**{"prompt": "", "variation_seed": 0, **needed, **values})
    except ConfigError:
        return {}
    return {name: getattr(request, name) for name in values}


def _sampler_names(pairs: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of sampler and schedule, and the keys that name unknown ones."""
    if "Sampler" not in pairs:
        return {}, []
    label = pairs.get("Schedule type")
    schedule = SCHEDULES_OF_WEB_UI.get(label, label) if label is not None else None
    for tried, unknown in ((schedule, []), (None, ["Schedule type"])):
        try:
            found = resolve_names(pairs["Sampler"], tried)
        except ConfigError:
            continue
        return dict(zip(("sampler", "schedule"), found, strict=True)), unknown
    return {}, ["Sampler"]


def _hires_names(pairs: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the same of a second pass that has its own."""
    labels = pairs.get("Hires sampler"), pairs.get("Hires schedule type")
    found: dict[str, Any] = {}
    left = []
    if labels[1] is not None:
        schedule = SCHEDULES_OF_WEB_UI.get(labels[1], labels[1])
        try:
            found["hires_schedule"] = resolve_names("euler", schedule)[1] if schedule else None
        except ConfigError:
            left.append("Hires schedule type")
    if labels[0] is not None:
        try:
            found["hires_sampler"] = resolve_names(labels[0], None)[0]
        except ConfigError:
            left.append("Hires sampler")
        else:
            found.setdefault("hires_schedule", _named_schedule(labels[0]))
    return {name: value for name, value in found.items() if value is not None}, left


def _named_schedule(sampler: str) -> str | None:
    """Return the schedule in a sampler's label, None where there is none."""
    first, second = (resolve_names(sampler, None, other)[1] for other in ("normal", "karras"))
    return first if first == second else None


def _value_text(value: str | float) -> str:
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(value)
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text
