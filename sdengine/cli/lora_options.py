"""Options of weights: `--lora FILE:STRENGTH`, `--hypernetwork FILE:STRENGTH`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import Lora

if TYPE_CHECKING:
    from sdengine.engine import Engine
    from sdengine.images.metadata import Metadata
    from sdengine.inputs.loras import Strength
    from sdengine.request.request import Request

LORA_HELP = (
    "LoRA or its kin, as often as there are; one strength is for all, two for text encoders and "
    "U-Net. 1 if not given"
)
FOLDER_HELP = "A folder of LoRAs that prompts may name in tags: <lora:name:0.8>."
LORA_METAVAR = "FILE[:TEXT[:UNET]]"
HYPERNETWORK_HELP = (
    "hypernetwork of a web UI, with its strength, 1 if not given; as often as there are, applied "
    "in their order"
)
HYPERNETWORKS_HELP = "A folder of hypernetworks that prompts may name in tags: <hypernet:name:0.8>."
HYPERNETWORK_METAVAR = "FILE[:STRENGTH]"


def parse_loras(
    options: Sequence[str] | None,
) -> dict[str | os.PathLike[str], Strength]:
    """Return files with their strengths.

    Raises:
        ConfigError: a file is not named, or named twice.
    """
    found = _parsed("--lora", options or (), LORA_METAVAR, 2)
    return {path: _strength(numbers) for path, numbers in found.items()}


def parse_hypernetworks(options: Sequence[str]) -> dict[str | os.PathLike[str], float]:
    """Return files with their strengths; raises as `parse_loras` does."""
    found = _parsed("--hypernetwork", options, HYPERNETWORK_METAVAR, 1)
    return {path: numbers[0] if numbers else 1.0 for path, numbers in found.items()}


def weight_warnings(recorded: Metadata | None, request: Request) -> list[str]:
    """Say in sentences where a recorded image was made with other files than are given."""
    if recorded is None or not recorded.provenance.bundle_hash:
        return []
    known = recorded.request_fields()
    found = []
    for name, none in (("loras", "no LoRA"), ("hypernetworks", "no hypernetwork")):
        pair = known.get(name) or (), getattr(request, name) or ()
        if _weighty(pair[0]) != _weighty(pair[1]):
            then, now = (", ".join(map(str, uses)) or none for uses in pair)
            found.append(f"the image was made with {then}, not with {now}, so it differs.")
    return found


def recorded_weights(recorded: Metadata, engine: Engine) -> dict[str, Any]:
    """Return the LoRAs and hypernetworks of a recorded image that can be had by their hashes."""
    known = recorded.request_fields()
    found = {
        name: tuple(one for one in known.get(name) or () if engine.knows(one))
        for name in ("loras", "hypernetworks")
    }
    return {name: uses for name, uses in found.items() if uses}


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


def _weighty(uses: Iterable[Lora | HypernetworkUse]) -> list[tuple[str | float, ...]]:
    """Return what changes a picture, whatever files are called; of LoRAs in any order."""
    nets = [
        (one.sha256, one.strength)
        for one in uses
        if isinstance(one, HypernetworkUse) and one.strength
    ]
    loras = [
        (one.sha256, one.text, one.unet, one.rank or 0)
        for one in uses
        if isinstance(one, Lora) and (one.text or one.unet)
    ]
    return [*nets, *sorted(loras)]


def _parsed(
    name: str, options: Iterable[str], form: str, most: int
) -> dict[str | os.PathLike[str], list[float]]:
    """Return files with the numbers behind them, at most so many."""
    found: dict[str | os.PathLike[str], list[float]] = {}
    for option in options:
        path, *numbers = split_numbers(option, most)
        file, is_there, strength = path.rpartition(":")
        if not path or path in found:
            raise ConfigError.for_field(name, option, f"{form}, each file once")
        if is_there and os.path.exists(file) and not os.path.exists(path):
            raise ConfigError.for_field(name, option, f"a number, where {strength!r} stands")
        found[path] = [float(number) for number in numbers]
    return found


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
