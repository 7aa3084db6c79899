"""Fields of OpenAI's images API: those that its clients send beside a prompt, read and checked.

Source: the types of its Python client, release 3.57. What is not listed here is a field of
`sdengine.Request`, or unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.fields import Check, Choice, Flag, Integer, Text
from sdengine.request.hires_fields import MAX_SIDE
from sdengine.request.keywords import ALIASES, IMAGES_PER_PROMPT

GENERATIONS, EDITS, VARIATIONS = "generations", "edits", "variations"
MAX_N, MAX_PARTIAL = 10, 3
# Steps relative to those that the request would take without a word on quality.
QUALITY_STEPS = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 2.0}
_OTHER_NAMES = {"auto": "medium", "standard": "medium", "hd": "high"}
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SIDE = Integer(8, MAX_SIDE)

_EVERYWHERE: dict[str, Check] = {
    "n": Integer(1, MAX_N),
    "size": Text(20, 'a text such as "512x512", or "auto"'),
    "response_format": Choice(("b64_json", "url")),
    "quality": Choice((*QUALITY_STEPS, *_OTHER_NAMES)),
    "background": Choice(("auto", "opaque")),
    "moderation": Choice(("auto", "low")),
    "output_format": Choice(("png", "jpeg", "webp")),
    "output_compression": Integer(0, 100),
    "user": Text(1000),
    "safety_identifier": Text(1000),
}
_STREAMED: dict[str, Check] = {
    "stream": Flag("true or false"),
    "partial_images": Integer(0, MAX_PARTIAL),
}
CHECKS: Mapping[str, Mapping[str, Check]] = {
    GENERATIONS: {**_EVERYWHERE, **_STREAMED},
    EDITS: {**_EVERYWHERE, **_STREAMED, "input_fidelity": Choice(("low", "high"))},
    VARIATIONS: _EVERYWHERE,
}
# What would do something elsewhere and can do nothing here.
_REFUSED = {
    "style": "Say it in the prompt.",
    "complexity": "Say `steps` or `quality`.",
    "frame_count": "Pictures do not move.",
    "frame_duration_ms": "Pictures do not move.",
    "svg": "Pictures are of pixels.",
    "markup": "Give a mask.",
    "stream": "Only generations and edits are streamed.",
    "partial_images": "Only generations and edits are streamed.",
    "input_fidelity": "Only edits have it; `strength` says how much of a picture goes.",
}
# Fields of a request that say the same as one of these.
_SAME = {
    "n": ("batch_size", IMAGES_PER_PROMPT),
    "size": ("width", "height"),
    "quality": ("steps", "num_inference_steps"),
    "input_fidelity": ("strength",),
    "cfg_scale": ("guidance_scale",),
}
_NO_OPS = {"size": ("auto",), "quality": ("auto", "standard", "medium")}


@dataclass(frozen=True)
class Options:
    """What a call asks for beside what the picture shows.

    Args:
        n: pictures of each prompt; None where the request itself may say it.
        size: width and height; None for the usual ones.
        quality: one of QUALITY_STEPS.
        as_url: give addresses of the pictures, not the pictures.
        output_format: png, jpeg or webp.
        compression: 0 to 100 of jpeg and webp, 100 the best.
        stream: answer by events.
        partial_images: of them those that show the picture on its way.
        input_fidelity: of edits, low or high.
    """

    n: int | None = None
    size: tuple[int, int] | None = None
    quality: str = "medium"
    as_url: bool = False
    output_format: str = "png"
    compression: int = 100
    stream: bool = False
    partial_images: int = 0
    input_fidelity: str = "low"


def read_options(fields: Mapping[str, Any], call: str) -> tuple[Options, dict[str, Any]]:
    """Return the API's own fields of a call, and the others, which a request has.

    Args:
        fields: all of them; null is what is left out.
        call: GENERATIONS, EDITS or VARIATIONS.

    Raises:
        ConfigError: one is not acceptable, cannot be honoured, or is said twice.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    checks = CHECKS[call]
    own = {name: check(name, given[name]) for name, check in checks.items() if name in given}
    rest = {name: value for name, value in given.items() if name not in own}
    for name, hint in _REFUSED.items():
        if name in rest:
            raise ConfigError.for_field(name, rest[name], f"none for {call}", hint)
    _check_once(given)
    if "cfg_scale" in rest:
        rest["guidance_scale"] = rest.pop("cfg_scale")
    is_streamed, partial = own.get("stream", False), own.get("partial_images", 0)
    if partial and not is_streamed:
        raise ConfigError.for_field("partial_images", partial, "0 without stream")
    output_format = own.get("output_format", "png")
    compression = own.get("output_compression", 100)
    if output_format == "png" and compression != 100:
        accepted = "100 for png, which loses nothing"
        raise ConfigError.for_field("output_compression", compression, accepted)
    as_url = own.get("response_format") == "url"
    if as_url and is_streamed:
        raise ConfigError.for_field("response_format", "url", "b64_json with stream")
    quality = own.get("quality", "auto")
    options = Options(
        n=own.get("n"),
        size=_size(own.get("size", "auto")),
        quality=_OTHER_NAMES.get(quality, quality),
        as_url=as_url,
        output_format=output_format,
        compression=compression,
        stream=is_streamed,
        partial_images=partial,
        input_fidelity=own.get("input_fidelity", "low"),
    )
    return options, rest


def check_side(output_format: str, width: int, height: int) -> None:
    """Refuse a picture that its format cannot hold.

    Raises:
        ConfigError: so it is.
    """
    most = {"webp": 16383}.get(output_format, 65500)
    if max(width, height) > most:
        accepted = f"at most {most} pixels a side in {output_format}"
        raise ConfigError.for_field("size", f"{width}x{height}", accepted)


def _check_once(given: Mapping[str, Any]) -> None:
    for name, others in _SAME.items():
        if name not in given or given[name] in _NO_OPS.get(name, ()):
            continue
        for other in others:
            if other in given:
                raise ConfigError(f"{name}, {other}: both are given; give one of them.")
    for alias, name in ALIASES.items():
        if alias in given and name in given:
            raise ConfigError(f"{alias}, {name}: both are given; give one of them.")


def _size(value: str) -> tuple[int, int] | None:
    if value == "auto":
        return None
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ConfigError.for_field("size", value, 'a text such as "512x512", or "auto"')
    return _SIDE("size", int(found[1])), _SIDE("size", int(found[2]))
