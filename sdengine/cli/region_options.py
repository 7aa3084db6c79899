"""Region options: `--region BOX` or `--region FILE` of the command."""

from __future__ import annotations

import re
from typing import Any

from sdengine.errors import ConfigError

REGION_METAVAR = "L,T,R,B|FILE[,weight=W]"
REGION_HELP = (
    "where one of the prompts that AND joins counts: left, top, right and bottom as fractions of "
    "the picture, as in 0,0,0.5,1, or a mask's file, white counting; once for each, in their "
    "order; a first prompt without a region is for the whole picture"
)
_WEIGHT = re.compile(r"(.*),\s*weight=([^,]*)", re.DOTALL)


def parse_region(text: str) -> dict[str, Any]:
    """Return the fields of a region that an option's value gives, not yet checked.

    Raises:
        ConfigError: its weight is no number, or nothing is before it.
    """
    found: dict[str, Any] = {}
    if (match := _WEIGHT.fullmatch(text)) is not None:
        text, weight = match.groups()
        try:
            found["weight"] = float(weight)
        except ValueError:
            raise ConfigError.for_field("--region", f"weight={weight}", "a number") from None
    if not text:
        raise ConfigError.for_field("--region", text, "0,0,0.5,1 or a mask's file")
    try:
        edges = [float(one) for one in text.split(",")]
    except ValueError:
        return {"mask": text, **found}
    return {"box": edges, **found}
