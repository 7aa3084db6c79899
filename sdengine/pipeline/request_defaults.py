"""Defaults of a request: what a bundle and the given fields say of those that are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.bundle.manifest import Defaults
from sdengine.inputs.picture import read_picture
from sdengine.request.hires_fields import MODEL_UPSCALER
from sdengine.request.outpaint_fields import OUTPAINT_STRENGTH
from sdengine.request.request import FIELDS, Request, random_seed
from sdengine.samplers import resolve_names

_SIDES = ("width", "height")


def with_defaults(given: Mapping[str, Any], defaults: Defaults) -> Request:
    """Return the request of some fields with every default filled in.

    Args:
        given: as `given_fields` returns them.
        defaults: of the bundle.

    Raises:
        ConfigError: a field is invalid.
    """
    values: dict[str, Any] = {
        **defaults.model_dump(exclude={"sampler", "schedule"}),
        "seed": random_seed(),
        **given,
    }
    values["sampler"], values["schedule"] = resolve_names(
        values.get("sampler", defaults.sampler),
        values.get("schedule", None if "sampler" in given else defaults.schedule),
    )
    if given.get("image") is not None:
        picture = values["image"] = read_picture("image", given["image"])
        own = picture.size
        if given.get("outpaint") is not None:
            values["outpaint"] = FIELDS["outpaint"].checked(given["outpaint"])
            values.setdefault("strength", OUTPAINT_STRENGTH)
            own = values["outpaint"].size(*own)
        if given.get("inpaint_area") != "masked":  # which is enlarged to the usual size
            values |= {n: s for n, s in zip(_SIDES, own, strict=True) if n not in given}
    if values.get("hires_model") is not None:
        values.setdefault("hires_upscaler", MODEL_UPSCALER)
    if values.get("variation_strength") and "variation_seed" not in values:
        values["variation_seed"] = random_seed()
    return Request(**values)
