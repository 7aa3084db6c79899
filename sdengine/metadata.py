"""What a PNG file says about how it was made: written beside the pixels, read as untrusted input.

Two text chunks: `parameters`, the form that image tools read, and `sdengine`, JSON with the exact
request of that one image and what ran it.

Source: the `parameters` text of the widely used web UIs: prompt, a line with the negative prompt, a
line of `key: value` pairs; "Portable Network Graphics", section 11.3.3 for text chunks.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError
from sdengine.request import Request

if TYPE_CHECKING:
    from sdengine.pipeline import Engine
    from sdengine.result import Result

CHUNK = "sdengine"
FORMAT = 1
_MAX_CHUNK_CHARACTERS = 1 << 20
_NEGATIVE = "Negative prompt: "


@dataclass(frozen=True)
class Metadata:
    """What was read from an image.

    Args:
        fields: of `Request`, checked; only those that the file names.
        backend, precision, threads: what ran it; None where the file does not say.
        model_hash: SHA-256 of the checkpoint, or its first digits.
        bundle_hash: SHA-256 of the bundle's manifest; "" where the file does not say.
        not_understood: keys of the file's parameters that have no counterpart here.
    """

    fields: dict[str, Any]
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    model_hash: str = ""
    bundle_hash: str = ""
    not_understood: tuple[str, ...] = field(default=())

    def request_fields(self) -> dict[str, Any]:
        """Return keyword arguments for `Engine.generate`."""
        return dict(self.fields)

    def differences(self, engine: Engine) -> list[str]:
        """Say in sentences why the engine may not give the same picture again."""
        lines = []
        source = engine.bundle.manifest.source.sha256
        if self.bundle_hash and self.bundle_hash != engine.bundle.sha256:
            lines.append("the image was made with another bundle, so the picture will differ.")
        elif self.model_hash and not source.startswith(self.model_hash):
            lines.append("the image was made with another model, so the picture will differ.")
        for name in ("backend", "precision"):
            wanted = getattr(self, name)
            found = engine.backend.name if name == "backend" else engine.precision
            if wanted and wanted != found:
                lines.append(f"the image was made with {name} {wanted}, not {found}.")
        if self.not_understood:
            lines.append(f"not understood and left out: {', '.join(self.not_understood)}.")
        return lines


def describe_image(result: Result, index: int) -> str:
    """Return the JSON text of one image."""
    content = {
        "format": FORMAT,
        "request": asdict(result.request.only(index)),
        "model": {"name": result.model, "sha256": result.model_hash},
        "bundle": result.bundle_hash,
        "backend": result.backend,
        "precision": result.precision,
        "threads": result.threads,
    }
    return json.dumps(content, ensure_ascii=False)


def parameters_text(result: Result, index: int) -> str:
    """Describe one image in the text form that image tools read."""
    from sdengine import __version__
    from sdengine.samplers import SAMPLERS, SCHEDULES

    request = result.request.only(index)
    lines = [str(request.prompt)]
    if request.negative_prompt:
        lines.append(f"{_NEGATIVE}{request.negative_prompt}")
    pairs: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": SAMPLERS[request.sampler].label,
        "Schedule type": SCHEDULES[request.schedule].label,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": result.model_hash[:10],
        "Model": _quoted(result.model),
    }
    if request.variation_strength:
        pairs["Variation seed"] = request.variation_seed
        pairs["Variation seed strength"] = f"{request.variation_strength:g}"
    if request.seed_width is not None:
        pairs["Seed resize from"] = f"{request.seed_width}x{request.seed_height}"
    optional = {
        "Clip skip": request.clip_skip,
        "Eta": request.eta,
        "Sigma churn": request.s_churn,
        "Sigma tmin": request.s_tmin,
        "Sigma tmax": request.s_tmax,
        "Sigma noise": request.s_noise,
    }
    pairs |= {key: f"{value:g}" for key, value in optional.items() if value is not None}
    if request.guidance_rescale:
        pairs["CFG Rescale"] = f"{request.guidance_rescale:g}"
    if request.emphasis != "original":
        pairs["Emphasis"] = _EMPHASIS_LABELS[request.emphasis]
    pairs["RNG"] = {"cpu": "CPU", "cuda": "GPU"}[request.noise]
    pairs["Version"] = f"sdengine {__version__}"
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items()))
    return "\n".join(lines)


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read how an image was made.

    Args:
        path: a PNG file that this product or another one with `parameters` text wrote.

    Raises:
        ConfigError: it is no such file, or what it says is damaged or out of range.
    """
    texts = _texts(path)
    if CHUNK in texts:
        return _from_chunk(str(path), texts[CHUNK])
    if "parameters" in texts:
        return _from_parameters(str(path), texts["parameters"])
    raise ConfigError(
        f"from: {str(path)!r} says nothing about how it was made; expected a PNG with a text chunk "
        f"{CHUNK!r} or 'parameters'."
    )


def _texts(path: str | os.PathLike[str]) -> dict[str, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(Path(path), formats=["PNG"]) as image:
            image.load()  # text may follow the pixels
            found = dict(getattr(image, "text", {}))
    except (UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"from: {str(path)!r} is not a usable PNG: {str(error)[:120]}.") from None
    except OSError as error:
        reason = error.strerror or str(error)[:120]
        raise ConfigError(f"from: {str(path)!r} cannot be read: {reason}.") from None
    return {key: str(text) for key, text in found.items() if len(text) <= _MAX_CHUNK_CHARACTERS}


def _from_chunk(path: str, text: str) -> Metadata:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"from: {path!r}: its {CHUNK} chunk is not valid JSON.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"from: {path!r}: its {CHUNK} chunk is not of format {FORMAT}.")
    request = content.get("request")
    model = content.get("model")
    if not isinstance(request, dict) or not isinstance(model, dict):
        raise ConfigError(f"from: {path!r}: its {CHUNK} chunk lacks the request or the model.")
    unknown = sorted(request.keys() - {f.name for f in fields(Request)})
    if unknown:
        raise ConfigError(f"from: {path!r}: field {unknown[0][:80]!r} is unknown to this release.")
    threads = content.get("threads")
    return Metadata(
        _checked(path, request),
        backend=_text(content.get("backend")) or None,
        precision=_text(content.get("precision")) or None,
        threads=threads if type(threads) is int and 1 <= threads <= 4096 else None,
        model_hash=_text(model.get("sha256")),
        bundle_hash=_text(content.get("bundle")),
    )


_EMPHASIS_LABELS = {
    "original": "Original",
    "no_norm": "No norm",
    "none": "Ignore",
    "literal": "None",
}
_WHOLE, _REAL = re.compile(r"[0-9]{1,20}"), re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_PAIR = re.compile(r'\s*([^:,"]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_NUMBERS = {
    "Steps": ("steps", _WHOLE),
    "CFG scale": ("guidance_scale", _REAL),
    "Seed": ("seed", _WHOLE),
    "Variation seed": ("variation_seed", _WHOLE),
    "Variation seed strength": ("variation_strength", _REAL),
    "Clip skip": ("clip_skip", _WHOLE),
    "Eta": ("eta", _REAL),
    "Sigma churn": ("s_churn", _REAL),
    "Sigma tmin": ("s_tmin", _REAL),
    "Sigma tmax": ("s_tmax", _REAL),
    "Sigma noise": ("s_noise", _REAL),
    "CFG Rescale": ("guidance_rescale", _REAL),
}
_SIZES = {"Size": ("width", "height"), "Seed resize from": ("seed_width", "seed_height")}
_NAMES = {
    "Sampler": ("sampler", {}),
    "Schedule type": ("schedule", {}),
    "RNG": ("noise", {"CPU": "cpu", "GPU": "cuda"}),
    "Emphasis": ("emphasis", {label: name for name, label in _EMPHASIS_LABELS.items()}),
}
_SAID_OTHERWISE = {"Model hash", "Model", "Version"}


def _from_parameters(path: str, text: str) -> Metadata:
    lines = text.strip().split("\n")
    pairs = {}
    if lines and re.match(r"Steps: [0-9]", lines[-1]):
        pairs = {key.strip(): value for key, value in _PAIR.findall(lines.pop())}
    body = "\n".join(lines)
    prompt, _, negative = body.partition(f"\n{_NEGATIVE}")
    if body.startswith(_NEGATIVE):
        prompt, negative = "", body.removeprefix(_NEGATIVE)
    found: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    left = []
    for key, value in pairs.items():
        plain = value.strip().strip('"')
        if key in _NUMBERS and _NUMBERS[key][1].fullmatch(plain):
            name, kind = _NUMBERS[key]
            found[name] = int(plain) if kind is _WHOLE else float(plain)
        elif key in _SIZES and (size := _SIZE.fullmatch(plain)):
            for name, side in zip(_SIZES[key], size.groups(), strict=True):
                found[name] = int(side)
        elif key in _NAMES:
            name, names = _NAMES[key]
            found[name] = names.get(plain, plain)
        elif key not in _SAID_OTHERWISE:
            left.append(key[:40])
    return Metadata(
        _checked(path, found),
        model_hash=pairs.get("Model hash", "").strip(),
        not_understood=tuple(left[:20]),
    )


def _checked(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields as a request holds them."""
    pairs = {"original_size", "crop", "target_size"}
    values: dict[str, Any] = {
        name: tuple(value) if name in pairs and isinstance(value, list) else value
        for name, value in given.items()
    }
    try:
        request = Request(**values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"from: {path!r}: {str(error)[:300]}") from None
    return {name: getattr(request, name) for name in values}


def _text(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _quoted(value: str) -> str:
    if any(char in value for char in ',:"\n'):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return value
