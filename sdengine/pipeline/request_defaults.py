"""Defaults of a request: what a bundle and the given fields say of those that are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.adapters.few_steps import FewSteps
from sdengine.bundle.manifest import Defaults
from sdengine.inputs.picture import read_picture
from sdengine.request.hires_fields import MODEL_UPSCALER
from sdengine.request.outpaint_fields import OUTPAINT_STRENGTH
from sdengine.request.request import FIELDS, Request, random_seed
from sdengine.samplers import resolve_names

_SIDES = ("width", "height")
_OF_FEW_STEPS = ("sampler", "schedule", "steps", "guidance_scale")


def with_defaults(
    given: Mapping[str, Any], defaults: Defaults, few_steps: FewSteps | None = None
) -> Request:
    """Return the request of some fields with every default filled in.

    Args:
        given: as `given_fields` returns them.
        defaults: of the bundle.
        few_steps: what a LoRA for few steps wants, which goes before them.

    Raises:
        ConfigError: a field is invalid.
    """
    usual = defaults.model_dump()
    if few_steps is not None:
        usual |= {name: getattr(few_steps, name) for name in _OF_FEW_STEPS}
    sampler, schedule = usual.pop("sampler"), usual.pop("schedule")
    values: dict[str, Any] = {
        **usual,
        "seed": random_seed(),
        **given,
    }
    values["sampler"], values["schedule"] = resolve_names(
        values.get("sampler", sampler),
        values.get("schedule", None if "sampler" in given and few_steps is None else schedule),
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
