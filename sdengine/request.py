"""What a caller asks for, checked before any work starts."""

from __future__ import annotations

import math
import numbers
import operator
import secrets
from dataclasses import dataclass
from typing import Any

from sdengine.errors import ConfigError

MAX_STEPS = 1000
MAX_SIDE = 16384
MAX_BATCH = 256
MAX_GUIDANCE = 100.0
MAX_SEED = 2**64 - 1
MAX_PROMPT_CHARACTERS = 100_000
SIZE_MULTIPLE = 8


@dataclass(frozen=True)
class Request:
    """One text-to-image request; constructing it checks every field.

    Args:
        prompt: what to show.
        negative_prompt: what to avoid; has an effect when guidance_scale > 1.
        width, height: pixels, multiples of 8.
        steps: sampler steps, 1 to 1000.
        guidance_scale: 0 to 100; at 1 and below the unconditional half is not computed.
        sampler, schedule: names or labels, as `sdengine samplers` lists them.
        seed: 0 to 2**64 - 1; image i of the batch uses seed + i.
        batch_size: number of images, 1 to 256.

    Raises:
        ConfigError: a field has the wrong type or is out of range; the message names it.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    seed: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        self._set("prompt", _text("prompt", self.prompt))
        self._set("negative_prompt", _text("negative_prompt", self.negative_prompt))
        for side in ("width", "height"):
            size = _integer(side, getattr(self, side), SIZE_MULTIPLE, MAX_SIDE)
            if size % SIZE_MULTIPLE:
                lower = size - size % SIZE_MULTIPLE
                hint = f"Nearest: {lower} and {lower + SIZE_MULTIPLE}."
                raise ConfigError.for_field(side, size, f"a multiple of {SIZE_MULTIPLE}", hint)
            self._set(side, size)
        self._set("steps", _integer("steps", self.steps, 1, MAX_STEPS))
        self._set("guidance_scale", _guidance(self.guidance_scale))
        self._set("batch_size", _integer("batch_size", self.batch_size, 1, MAX_BATCH))
        seed = _integer("seed", self.seed, 0, MAX_SEED)
        if seed + self.batch_size - 1 > MAX_SEED:
            accepted = f"at most {MAX_SEED - self.batch_size + 1} for {self.batch_size} images"
            raise ConfigError.for_field("seed", seed, accepted)
        self._set("seed", seed)
        for name in ("sampler", "schedule"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ConfigError.for_field(name, value, "a name; `sdengine samplers` lists them")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(self.seed + index for index in range(self.batch_size))

    @property
    def uses_guidance(self) -> bool:
        """Whether the unconditional half is computed."""
        return self.guidance_scale > 1.0


def random_seed() -> int:
    """Draw a seed of 32 bits: what every other tool accepts."""
    return secrets.randbelow(2**32)


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError.for_field(field, value, "text")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ConfigError(
            f"{field}: {len(value)} characters; at most {MAX_PROMPT_CHARACTERS} are accepted."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError.for_field(field, value, "valid Unicode text") from None
    return str(value)


def _integer(field: str, value: Any, low: int, high: int) -> int:
    accepted = f"a whole number from {low} to {high}"
    if isinstance(value, bool):
        raise ConfigError.for_field(field, value, accepted)
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError.for_field(field, value, accepted) from None
    if not low <= number <= high:
        raise ConfigError.for_field(field, _Shown(number), accepted)
    return number


def _guidance(value: Any) -> float:
    accepted = f"a number from 0 to {MAX_GUIDANCE:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError.for_field("guidance_scale", value, accepted)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and 0 <= number <= MAX_GUIDANCE):
        raise ConfigError.for_field("guidance_scale", number, accepted)
    return number


class _Shown:
    """Show a whole number however long: Python refuses to print the longest ones in full."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __repr__(self) -> str:
        digits = self._number.bit_length() * 0.30103
        return repr(self._number) if digits < 100 else f"a number of about {digits:.0f} digits"
