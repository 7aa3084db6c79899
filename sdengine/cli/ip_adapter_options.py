"""IP-Adapter options: `--ip-adapter FILE=PICTURE:SCALE`, and what a recorded image adds to them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.image_embeds import ENDINGS as OF_EMBEDS
from sdengine.inputs.ip_adapters import ENDINGS, read_ip_adapter
from sdengine.request.ip_adapters import IP_ADAPTER_FIELDS, IPAdapter

IP_ADAPTER_METAVAR = "FILE=PICTURE[:SCALE][,KEY=VALUE]..."
IP_ADAPTER_HELP = (
    "prompt with a picture: an IP-Adapter's file, a picture or a file of embeddings, and a scale, "
    "1 if not given, as in ip-adapter_sd15.safetensors=cat.png:0.6; repeatable; keys are image, "
    "for more pictures, start, end, and blocks, as in blocks=up_blocks.0.attentions.1:1/mid_block:0"
)
_OPTION = "--ip-adapter"
_FILE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, ENDINGS))}))=(.+)", re.DOTALL | re.IGNORECASE)
_KEY = re.compile(r"([A-Za-z_]+)=(.*)", re.DOTALL)
_KEYS = ("image", "start", "end", "blocks")


def parse_ip_adapter(text: str) -> dict[str, Any]:
    """Return the fields of an IP-Adapter that an option's value gives, not yet checked.

    Raises:
        ConfigError: it has another form.
    """
    match = _FILE.fullmatch(text)
    if match is None:
        accepted = f"FILE=PICTURE[:SCALE], where FILE ends as one of {', '.join(ENDINGS)}"
        raise ConfigError.for_field(_OPTION, text, accepted)
    file, rest = match.groups()
    found: dict[str, Any] = {}
    more: list[str] = []
    while "," in rest:
        before, _, last = rest.rpartition(",")
        option = _KEY.fullmatch(last.strip())
        if option is None:  # part of a file's name
            break
        key, value = option.groups()
        if key not in _KEYS or key in found:
            raise ConfigError.for_field(_OPTION, last, f"keys {', '.join(_KEYS)}, each once")
        if key == "image":
            more.insert(0, value)
        else:
            found[key] = _blocks(last, value) if key == "blocks" else _number(last, value)
        rest = before
    path, is_there, scale = rest.rpartition(":")
    if is_there and _is_number(scale) and not os.path.exists(rest):
        rest, found["scale"] = path, float(scale)
    if Path(rest).suffix.lower() in OF_EMBEDS:
        if more:
            raise ConfigError.for_field(_OPTION, text, "no more pictures beside embeddings")
        return {"file": file, "embeds": rest, **found}
    return {"file": file, "image": [rest, *more], **found}


def merged_ip_adapters(
    recorded: Iterable[IPAdapter], given: Sequence[Mapping[str, Any]]
) -> list[IPAdapter | dict[str, Any]]:
    """Return the IP-Adapters of a recorded image, with the files and options that are given.

    A file goes with the one recorded of the same hash, others in their order; those that are left
    over are added. Those recorded that nobody gives a file of are refused when the request is run.
    """
    known = list(recorded)
    left = [{**one, "file": read_ip_adapter(_OPTION, one["file"])} for one in given]
    found: list[IPAdapter | dict[str, Any]] = list(known)
    for same_file in (True, False):
        for index, old in enumerate(known):
            own = next((one for one in left if not same_file or one["file"] == old.file), None)
            if own is None or found[index] is not old:
                continue
            left = [one for one in left if one is not own]
            fields = {name: getattr(old, name) for name in IP_ADAPTER_FIELDS}
            found[index] = {**fields, "image": (), "embeds": None, **own}
    return [*found, *left]


def other_pictures(recorded: Sequence[IPAdapter], found: Sequence[IPAdapter]) -> list[str]:
    """Say in sentences where adapters or pictures are not those that an image was made with."""
    lines = []
    for old, new in zip(recorded, found, strict=False):
        pairs = [("another file", [old.file], [new.file])]
        pairs.append(("other pictures", [*old.image, old.embeds], [*new.image, new.embeds]))
        for what, before, now in pairs:
            if before != now:
                hashes = ", ".join(one.sha256 for one in before if one is not None)
                name = new.file.name or "adapter"
                lines.append(
                    f"ip_adapter {name}: the image was made with {what}, with SHA-256 {hashes}."
                )
    return lines


def _number(option: str, value: str) -> float:
    if not _is_number(value):
        raise ConfigError.for_field(_OPTION, option, "a number behind =")
    return float(value)


def _blocks(option: str, value: str) -> dict[str, float]:
    found = {}
    for part in value.split("/"):
        path, is_there, factor = part.partition(":")
        if not path or (is_there and not _is_number(factor)):
            raise ConfigError.for_field(_OPTION, option, "PART:FACTOR, several with / between them")
        found[path] = float(factor) if is_there else 1.0
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
