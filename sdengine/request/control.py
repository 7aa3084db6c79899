"""Control of a request: a network of the bundle that steers the U-Net by a picture, and how far."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.recorded import read_record
from sdengine.request.fields import (
    PICTURE,
    Choice,
    FieldInfo,
    Flag,
    Number,
    Text,
    about,
    as_arguments,
    field_infos,
)
from sdengine.request.preprocessors import PREPROCESSORS, check_options

MODES = ("balanced", "prompt", "control", "guess")
RESIZES = ("stretch", "crop", "fill")
# Kinds of picture by number in union ControlNets; those of ProMax know the last two.
CONTROL_TYPES: Mapping[str, int] = MappingProxyType(
    {
        "openpose": 0,
        "depth": 1,
        "soft_edge": 2,
        "scribble": 2,
        "canny": 3,
        "lineart": 3,
        "mlsd": 3,
        "normal": 4,
        "segmentation": 5,
        "tile": 6,
        "inpaint": 7,
    }
)
_PREPROCESSORS = tuple(name for name, one in PREPROCESSORS.items() if one.in_requests)
_MAX_OPTIONS = 16
MAX_CONTROLS = 16
_MAX_WEIGHTS = 100
_WEIGHT = Number(0, 10)


@dataclass(frozen=True)
class LayerWeights:
    """A list of numbers, one for each tensor that a control gives."""

    accepted: str = (
        "a list of numbers from 0 to 10, one for each residual: 13 for Stable Diffusion 1 and 2, "
        "10 for SDXL"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        """Return a tuple of floats."""
        if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MAX_WEIGHTS:
            raise ConfigError.for_field(name, value, self.accepted)
        return tuple(_WEIGHT(name, one) for one in value)


@dataclass(frozen=True)
class PreprocessOptions:
    """Options by name, not yet checked; as a mapping or as pairs."""

    accepted: str = "options by name, such as {'low': 50}"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[tuple[str, Any], ...]:
        """Return pairs."""
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(pairs, (list, tuple)) or len(pairs) > _MAX_OPTIONS:
            raise ConfigError.for_field(name, value, self.accepted)
        for pair in pairs:
            is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
            if not is_pair or not isinstance(pair[0], str):
                raise ConfigError.for_field(name, value, self.accepted)
        return tuple((key, one) for key, one in pairs)


@dataclass(frozen=True)
class Control:
    """One control of a request; constructing it checks every field.

    Args:
        {fields}

    Raises:
        ConfigError: a field has the wrong type or is out of range; the message names it.

    Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al. 2023);
    modes "prompt" and "control" are the web UI's soft weights, 0.825 to the power of a residual's
    distance from the middle block, and "guess" is diffusers' guess_mode, 0.1 to 1 evenly in
    logarithms.
    """

    network: str = field(
        metadata=about(Text(60), "its name in the bundle, as `sdengine build --control` was told")
    )
    # What callers may give is more than what it is once it is checked: a Recorded.
    image: Any = field(
        metadata=about(
            PICTURE,
            "what it reads, such as edges white on black: a path, a PIL image, an array or a "
            "file's bytes; transparent pixels count as black",
        )
    )
    scale: float = field(
        default=1.0,
        metadata=about(
            Number(0, 10),
            "factor on all that it adds; with 0 its network neither runs nor loads",
        ),
    )
    start: float = field(
        default=0.0,
        metadata=about(Number(0, 1), "evaluation i of n is steered if start <= i / n"),
    )
    end: float = field(
        default=1.0, metadata=about(Number(0, 1), "and if (i + 1) / n <= end, as diffusers counts")
    )
    mode: str = field(
        default="balanced",
        metadata=about(
            Choice(MODES),
            "prompt gives layers far from the middle less weight, control does so and steers the "
            "conditional half alone, guess is diffusers' way of that",
        ),
    )
    layer_weights: Sequence[float] | None = field(
        default=None,
        metadata=about(
            LayerWeights(), "weight of each residual, the middle block's last, in place of mode's"
        ),
    )
    resize: str = field(
        default="stretch", metadata=about(Choice(RESIZES), "how image gets the size of the result")
    )
    masked: bool = field(
        default=False,
        metadata=about(
            Flag(), "what the request's mask lets change is -1 in image, as ControlNets for "
            "inpainting read it"
        ),
    )  # fmt: skip

    control_type: str | None = field(
        default=None,
        metadata=about(
            Choice(tuple(CONTROL_TYPES)), "what image is, for union ControlNets, which need it"
        ),
    )
    preprocess: str = field(
        default="none",
        metadata=about(
            Choice(_PREPROCESSORS),
            "what image is made into first, at the size of the result unless its option "
            "resolution says another",
        ),
    )
    preprocess_options: Any = field(  # pairs, once they are checked
        default=(), metadata=about(PreprocessOptions(), "options of preprocess by name")
    )

    def __post_init__(self) -> None:
        for name in ("image", "control_type"):
            if isinstance(given := getattr(self, name), (list, tuple)):
                raise ConfigError.for_field(
                    f"control.{name}",
                    f"{len(given)} of them",
                    "one",
                    "A union ControlNet is not run on several pictures at once: give each a "
                    "control of its own, with the same network; what they add is summed.",
                )
        for name, info in CONTROL_FIELDS.items():
            value = getattr(self, name)
            if value is not None or info.default is not None:
                object.__setattr__(self, name, info.check(f"control.{name}", value))
        if self.start >= self.end:
            raise ConfigError.for_field(
                "control.start", self.start, f"less than end, which is {self.end:g}"
            )
        known, options = PREPROCESSORS[self.preprocess], dict(self.preprocess_options)
        if "background" in options:
            raise ConfigError.for_field(
                "background", options["background"], "none in controls: black is under their image"
            )
        checked = check_options(known, options)
        object.__setattr__(self, "preprocess_options", tuple(sorted(checked.items())))

    def to_dict(self) -> dict[str, Any]:
        """Return every field by name as JSON holds it; the picture is a record."""
        values = {name: getattr(self, name) for name in CONTROL_FIELDS}
        options = dict(self.preprocess_options)
        return {**values, "image": self.image.record(), "preprocess_options": options}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Control:
        """Return the control that has these fields.

        Raises:
            ConfigError: one is unknown, missing, or not acceptable.
        """
        for name in values:
            if name not in CONTROL_FIELDS:
                near = difflib.get_close_matches(str(name)[:80], CONTROL_FIELDS, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                known = ", ".join(CONTROL_FIELDS)
                raise ConfigError(
                    f"control.{str(name)[:80]}: a control has no such field; it has {known}.{hint}"
                )
        for field_ in dataclasses.fields(cls):
            if field_.default is dataclasses.MISSING and field_.name not in values:
                raise ConfigError(f"control.{field_.name}: it is missing.")
        return cls(**values)


CONTROL_FIELDS: Mapping[str, FieldInfo] = MappingProxyType(field_infos(Control))
Control.__doc__ = str(Control.__doc__).format(fields=as_arguments(CONTROL_FIELDS.values(), 8))


@dataclass(frozen=True)
class Controls:
    """Some controls, each a Control or its fields by name."""

    accepted: str = f"a list of up to {MAX_CONTROLS} sdengine.Control"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[Control, ...]:
        """Return a tuple of controls."""
        if isinstance(value, (Control, Mapping)):
            value = (value,)
        if not isinstance(value, (list, tuple)) or len(value) > MAX_CONTROLS:
            raise ConfigError.for_field(name, value, self.accepted)
        found = []
        for one in value:
            if not isinstance(one, (Control, Mapping)):
                raise ConfigError.for_field(name, one, self.accepted)
            found.append(one if isinstance(one, Control) else Control.of(one))
        return tuple(found)


def read_controls(value: Any) -> Any:
    """Return the controls of JSON from whomever, not yet checked but for their pictures' records.

    Raises:
        ConfigError: a picture's record is none.
    """
    if not isinstance(value, list):
        return value  # which the request refuses
    return [
        {**one, "image": read_record("control.image", one["image"])}
        if isinstance(one, Mapping) and "image" in one
        else one
        for one in value
    ]
