"""LoRA options: `--lora FILE:STRENGTH`, as many times as there are files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.engine import Engine
    from sdengine.images.metadata import Metadata
    from sdengine.inputs.loras import Lora, Strength
    from sdengine.request.request import Request

LORA_HELP = (
    "LoRA or its kin, as often as there are; one strength is for all, two for text encoders and "
    "U-Net. 1 if not given"
)
FOLDER_HELP = "A folder of LoRAs that prompts may name in tags: <lora:name:0.8>."
LORA_METAVAR = "FILE[:TEXT[:UNET]]"


def parse_loras(
    options: Sequence[str] | None,
) -> dict[str | os.PathLike[str], Strength]:
    """Return files with their strengths.

    Raises:
        ConfigError: a file is not named, or named twice.
    """
    found: dict[str | os.PathLike[str], Strength] = {}
    for option in options or ():
        path, *numbers = split_numbers(option, 2)
        file, is_there, strength = path.rpartition(":")
        if not path or path in found:
            raise ConfigError.for_field("--lora", option, f"{LORA_METAVAR}, each file once")
        if is_there and os.path.exists(file) and not os.path.exists(path):
            raise ConfigError.for_field("--lora", option, f"a number, where {strength!r} stands")
        found[path] = _strength([float(number) for number in numbers])
    return found


def lora_warnings(recorded: Metadata | None, request: Request) -> list[str]:
    """Say in a sentence where a recorded image was made with other LoRAs than are given."""
    known = () if recorded is None else recorded.request_fields().get("loras") or ()
    used = request.loras or ()
    is_ours = recorded is not None and recorded.provenance.bundle_hash
    if not is_ours or _weighty(known) == _weighty(used):
        return []
    then, now = (", ".join(map(str, loras)) or "no LoRA" for loras in (known, used))
    return [f"the image was made with {then}, not with {now}, so the picture differs."]


def recorded_loras(recorded: Metadata, engine: Engine) -> tuple[Lora, ...]:
    """Return the LoRAs of a recorded image that can be had again by their hashes."""
    known = recorded.request_fields().get("loras") or ()
    return tuple(one for one in known if engine.knows_lora(one))


def tag_warnings(recorded: Metadata | None, used: Request) -> list[str]:
    """Say in sentences where tags of a recorded prompt found other files than the image's.

    Args:
        recorded: of the image.
        used: as it ran.
    """
    from sdengine.inputs.loras import web_ui_hash

    found = {one.name.lower(): one for one in used.loras or () if one.path is not None}
    lines = []
    for name, told in () if recorded is None else recorded.loras:
        lora = found.get(name.lower())
        if lora is None or lora.path is None:
            continue
        here = (web_ui_hash(lora.path), lora.sha256)
        if not any(one.startswith(told.lower()) for one in here):
            lines.append(
                f"the image was made with another file of the LoRA {name!r}, with hash {told}."
            )
    return lines


def _weighty(loras: Iterable[Lora]) -> list[tuple[str, float, float, int]]:
    """Return what of LoRAs changes a picture, whatever their files are called and in any order."""
    used = (one for one in loras if one.text or one.unet)
    return sorted((one.sha256, one.text, one.unet, one.rank or 0) for one in used)


def split_numbers(option: str, most: int) -> list[str]:
    """Cut numbers behind colons off the end; a colon in a path stays there."""
    parts = option.split(":")
    numbers: list[str] = []
    while len(parts) > 1 and len(numbers) < most and _is_number(parts[-1]):
        numbers.insert(0, parts.pop())
    return [":".join(parts), *numbers]


def _strength(numbers: list[float]) -> Strength:
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    return numbers[0] if numbers else 1.0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
