"""Regions of a request: where in the picture each of the prompts that AND joins counts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.recorded import read_record
from sdengine.request.fields import (
    PICTURE,
    FieldInfo,
    Number,
    about,
    as_arguments,
    field_infos,
)

# What has no meaning without `regions`.
REGION_OPTIONS = ("region_base",)
MAX_REGIONS = 16  # as many as AND joins parts
USUAL_BASE = 0.2
_SHARE = Number(0, 1)


@dataclass(frozen=True)
class Edges:
    """A rectangle by four numbers."""

    accepted: str = (
        "left, top, right and bottom as fractions of the picture from 0 to 1, left before right "
        "and top before bottom"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[float, float, float, float]:
        """Return a tuple of floats."""
        if not isinstance(value, (list, tuple)) or len(value) != 4:
            raise ConfigError.for_field(name, value, self.accepted)
        left, top, right, bottom = (_SHARE(name, one) for one in value)
        if left >= right or top >= bottom:
            raise ConfigError.for_field(name, (left, top, right, bottom), self.accepted)
        return left, top, right, bottom


@dataclass(frozen=True)
class Region:
    """One region of a request; constructing it checks every field.

    Args:
        {fields}

    Raises:
        ConfigError: a field has the wrong type or is out of range, or not one of box and mask is
            given; the message names it.
    """

    # What callers may give is more than what it is once it is checked: floats, a Recorded.
    box: Any = field(
        default=None,
        metadata=about(
            Edges(), "a rectangle: left, top, right and bottom as fractions of the picture"
        ),
    )
    mask: Any = field(
        default=None,
        metadata=about(
            PICTURE,
            "in its place a picture of any size, stretched over the result: white counts, black "
            "does not, grey is between; a path, a PIL image, a uint8 array or a file's bytes",
        ),
    )
    weight: float = field(
        default=1.0,
        metadata=about(
            Number(0.01, 100),
            "factor on it, against other regions where they overlap; less than 1 leaves more to "
            "the prompt of the whole picture",
        ),
    )

    def __post_init__(self) -> None:
        for name, info in REGION_FIELDS.items():
            value = getattr(self, name)
            if value is not None or info.default is not None:
                object.__setattr__(self, name, info.check(f"region.{name}", value))
        if (self.box is None) == (self.mask is None):
            raise ConfigError("region.box, region.mask: give one of them.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON holds them; a mask is a record."""
        if self.mask is not None:
            return {"mask": self.mask.record(), "weight": self.weight}
        return {"box": list(self.box), "weight": self.weight}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Region:
        """Return the region that has these fields.

        Raises:
            ConfigError: one is unknown or not acceptable.
        """
        for name in values:
            if name not in REGION_FIELDS:
                near = difflib.get_close_matches(str(name)[:80], REGION_FIELDS, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                known = ", ".join(REGION_FIELDS)
                raise ConfigError(
                    f"region.{str(name)[:80]}: a region has no such field; it has {known}.{hint}"
                )
        return cls(**values)


REGION_FIELDS: Mapping[str, FieldInfo] = MappingProxyType(field_infos(Region))
Region.__doc__ = str(Region.__doc__).format(fields=as_arguments(REGION_FIELDS.values(), 8))


@dataclass(frozen=True)
class Regions:
    """Some regions, each a Region or its fields by name."""

    accepted: str = f"a list of up to {MAX_REGIONS} sdengine.Region"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[Region, ...]:
        """Return a tuple of regions."""
        if isinstance(value, (Region, Mapping)):
            value = (value,)
        if not isinstance(value, (list, tuple)) or len(value) > MAX_REGIONS:
            raise ConfigError.for_field(name, value, self.accepted)
        found = []
        for one in value:
            if not isinstance(one, (Region, Mapping)):
                raise ConfigError.for_field(name, one, self.accepted)
            found.append(one if isinstance(one, Region) else Region.of(one))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class RegionFields:
    """Those fields of a request that say where its prompts count; see `sdengine.Request`."""

    regions: tuple[Region, ...] = field(
        default=(),
        metadata=about(
            Regions(),
            "where in the picture each of the last prompts that AND joins counts; a first one "
            "without a region is for the whole picture; a list of sdengine.Region",
            option="region",
        ),
    )
    region_base: float = field(
        default=USUAL_BASE,
        metadata=about(
            _SHARE, "regions: what the prompt of the whole picture counts inside of them"
        ),
    )

    def check_regions(self) -> None:
        """Refuse a share without regions.

        Raises:
            ConfigError: so it is.
        """
        if not self.regions and self.region_base != USUAL_BASE:
            hint = "Give regions, or leave it out."
            raise ConfigError.for_field(
                "region_base", self.region_base, "its default without regions", hint
            )


def read_regions(value: Any) -> Any:
    """Return the regions of JSON from whomever, not yet checked but for their masks' records.

    Raises:
        ConfigError: a mask's record is none.
    """
    if not isinstance(value, list):
        return value  # which the request refuses
    return [
        {**one, "mask": read_record("region.mask", one["mask"])}
        if isinstance(one, Mapping) and one.get("mask") is not None
        else one
        for one in value
    ]
