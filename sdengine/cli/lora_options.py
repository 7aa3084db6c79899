"""LoRA options: `--lora FILE:STRENGTH`, as many times as there are files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
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


def few_step_notes(engine: Engine, request: Request, given: Collection[str]) -> list[str]:
    """Say how the LoRAs that are for few steps want to be sampled, where a request does not say.

    Args:
        engine: that runs the request.
        request: with the LoRAs.
        given: names of the fields that the caller names.
    """
    notes = []
    for adapter, _, unet in engine.weights_of(request).loras:
        wanted = adapter.few_steps
        if wanted is None or not unet or {"sampler", "steps", "guidance_scale"} <= set(given):
            continue
        notes.append(
            f"{adapter.name} is a {wanted.name} LoRA for few steps: it wants --sampler "
            f"{wanted.sampler} --schedule {wanted.schedule} --steps {wanted.steps} "
            f"--guidance-scale {wanted.guidance_scale:g}."
        )
    return notes


def _weighty(loras: Iterable[Lora]) -> list[tuple[str, float, float]]:
    """Return what of LoRAs changes a picture, whatever their files are called and in any order."""
    return sorted((one.sha256, one.text, one.unet) for one in loras if one.text or one.unet)


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
