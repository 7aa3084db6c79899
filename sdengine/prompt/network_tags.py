"""Network tags in a prompt: `<lora:name:0.8>` and its kin, which ask for changed weights.

Source: the extra networks that the Stable Diffusion web UI documents. They are no part of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sdengine.errors import ConfigError
from sdengine.inputs.loras import MAX_RANK

# All but the last are one kind of file by now.
_KINDS = ("lora", "lyco", "locon", "loha", "lokr", "hypernet")
_TAG = re.compile(rf"<(?:{'|'.join(_KINDS)}):[^<>]+>", re.IGNORECASE)
_STRENGTHS = ("te", "unet", "dyn")
_MOST = 100
_ACCEPTED = "<lora:name>, <lora:name:0.8> or <lora:name:TEXT:UNET:RANK>, with te=, unet= or dyn="
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class NetworkTag:
    """What a tag asks for.

    Args:
        kind: "lora", whatever it was called, or "hypernet".
        name: of the file, as it was written.
        text, unet: strength in the text encoders and in the U-Net.
        rank: that the file's is cut down to; None leaves it.
    """

    kind: str
    name: str
    text: float = 1.0
    unet: float = 1.0
    rank: int | None = None


def split_tags(text: str) -> tuple[str, list[str]]:
    """Return a prompt without its tags, and the tags as they are written."""
    return _TAG.sub("", text), _TAG.findall(text)


def parse_tag(tag: str) -> NetworkTag:
    """Return what a tag asks for: one number is both strengths, and without any they are 1.

    Args:
        tag: as `split_tags` returns it.

    Raises:
        ConfigError: it has no name, or something in it is no number or said twice.
    """
    kind, *items = tag[1:-1].split(":")
    if not _TAG.fullmatch(tag) or not items[0].strip():
        raise ConfigError.for_field("prompt", tag, _ACCEPTED)
    given: dict[str, str] = {}
    for place, item in enumerate(items[1:]):
        name, is_named, value = item.partition("=")
        if not is_named:
            name, value = next(iter(_STRENGTHS[place : place + 1]), ""), item
        name = name.strip().lower()
        if name not in _STRENGTHS or name in given:
            raise ConfigError.for_field("prompt", tag, _ACCEPTED)
        given[name] = value
    text = _number(tag, given.get("te", "1"), float)
    unet = _number(tag, given["unet"], float) if "unet" in given else text
    rank = _number(tag, given["dyn"], int) if "dyn" in given else None
    if rank is not None and not 1 <= rank <= MAX_RANK:
        hint = f"A rank is from 1 to {MAX_RANK}."
        raise ConfigError.for_field("prompt", tag, _ACCEPTED, hint)
    is_lora = kind.lower() != "hypernet"
    return NetworkTag("lora" if is_lora else "hypernet", items[0].strip(), text, unet, rank)


def _number(tag: str, text: str, kind: Callable[[str], Number]) -> Number:
    try:
        value = kind(text)
        if math.isfinite(value) and (kind is int or abs(value) <= _MOST):
            return value
    except (ValueError, OverflowError):
        pass
    raise ConfigError.for_field("prompt", tag, _ACCEPTED, f"{text[:40]!r} is no such number.")
