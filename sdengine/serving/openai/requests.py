"""Requests of a call: what its fields and pictures ask of an engine, one request a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdengine.engine import Engine
from sdengine.errors import ConfigError
from sdengine.inputs.picture import read_picture
from sdengine.request.keywords import IMAGES_PER_PROMPT
from sdengine.request.picture_fields import AREA_FIELDS, MASK_FIELDS
from sdengine.request.request import Request
from sdengine.serving.openai.fields import (
    EDITS,
    QUALITY_STEPS,
    VARIATIONS,
    Options,
    check_side,
    read_options,
)
from sdengine.serving.openai.models import bundle_and_model
from sdengine.serving.openai.pictures import mask_of, own_mask
from sdengine.serving.payload import read_payload
from sdengine.serving.service import Service

# How much of a picture goes, where a call does not say `strength`.
EDIT_STRENGTH, EDIT_STRENGTH_OF_HIGH_FIDELITY = 0.75, 0.5
MASKED_STRENGTH, MASKED_STRENGTH_OF_HIGH_FIDELITY = 1.0, 0.75
VARIATION_STRENGTH = 0.6
MAX_PICTURES = 16


@dataclass(frozen=True)
class Call:
    """What one call asks for: a request for each picture that it brings, or one without.

    Args:
        service: that serves it.
        options: of the answer.
        bundle: that runs it.
        keywords: of `Engine.request`, but those of the picture.
        pictures: contents of files; empty for a request from noise.
        mask: of the first picture, as it came; None for none.
        kind: GENERATIONS, EDITS or VARIATIONS.
    """

    service: Service
    options: Options
    bundle: str
    keywords: Mapping[str, Any]
    pictures: tuple[bytes, ...]
    mask: bytes | None
    kind: str

    @property
    def count(self) -> int:
        """How many requests there are."""
        return max(1, len(self.pictures))

    @property
    def engine(self) -> Engine:
        """The engine that runs them."""
        return self.service.engine(self.bundle)

    def request(self, number: int) -> Request:
        """Return one of the requests; the picture is decoded for it, so that few are held at once.

        Raises:
            SdengineError: it is not acceptable.
        """
        keywords = dict(self.keywords)
        if self.pictures:
            keywords |= self._of_picture(number, keywords)
        if (factor := QUALITY_STEPS[self.options.quality]) != 1:
            usual = self.engine.request(keywords["prompt"], loras=keywords.get("loras")).steps
            keywords["steps"] = max(1, round(usual * factor))
        prompt, negative = keywords.pop("prompt"), keywords.pop("negative_prompt", "")
        request = self.engine.request(prompt, negative, **keywords)
        size = (request.width, request.height)
        if request.hires is not None:
            size = request.hires_size(*size)
        check_side(self.options.output_format, *size)
        if self.options.partial_images and request.batch_size > 1:
            hint = "An event does not say which picture it shows."
            partial = self.options.partial_images
            raise ConfigError.for_field("partial_images", partial, "0 with n of more than 1", hint)
        return request

    def check_all(self) -> None:
        """Refuse what a later request would be refused for, before the first one runs.

        Raises:
            SdengineError: so it is.
        """
        if self.count == 1:  # which is checked as it is submitted
            return
        images, most = 0, self.service.limits.max_images
        for number in range(self.count):
            request = self.request(number)
            images += request.batch_size
            if images > most:
                shown = f"{self.count} pictures with {request.batch_size} results each"
                raise ConfigError.for_field("image", shown, f"at most {most} results of a call")
            self.service.limits.check(request)
            self.engine.plan(request)

    def _of_picture(self, number: int, given: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords of a picture, and take from the given ones those of no mask."""
        name = "image" if len(self.pictures) == 1 else f"image[{number}]"
        checked = self.service.pictures.checked
        picture = read_picture(name, checked(name, self.pictures[number]))
        found: dict[str, Any] = {"image": picture}
        is_free = "outpaint" not in given
        mask, is_own = None, False
        if self.kind == EDITS and number == 0 and self.mask is not None:
            mask = mask_of("mask", read_picture("mask", checked("mask", self.mask)))
        elif self.kind == EDITS and is_free:
            mask = own_mask(picture)
            is_own = mask is not None
        if mask is not None:
            found["mask"] = mask
        elif self.mask is not None and is_free:  # they are meant for the first picture
            for field in (*MASK_FIELDS, *AREA_FIELDS):
                given.pop(field, None)
        if is_free and "strength" not in given:
            found["strength"] = self._strength(mask is not None, is_own)
        if self.options.size is not None and is_free and given.get("inpaint_area") != "masked":
            found["resize"] = given.get("resize", "crop")
        return found

    def _strength(self, is_masked: bool, is_own: bool) -> float:
        if self.kind == VARIATIONS:
            return VARIATION_STRENGTH
        is_high = self.options.input_fidelity == "high"
        if is_own and is_high:
            hint = "Give a mask, and the picture below it."
            accepted = "low where a picture's own transparency is its mask, below which nothing is"
            raise ConfigError.for_field("input_fidelity", "high", accepted, hint)
        if is_masked:
            return MASKED_STRENGTH_OF_HIGH_FIDELITY if is_high else MASKED_STRENGTH
        return EDIT_STRENGTH_OF_HIGH_FIDELITY if is_high else EDIT_STRENGTH


def read_call(
    service: Service,
    kind: str,
    fields: Mapping[str, Any],
    pictures: Mapping[str, list[bytes]] | None = None,
) -> Call:
    """Return what a call asks for; its requests are checked as they are made.

    Args:
        service: that serves it.
        kind: GENERATIONS, EDITS or VARIATIONS.
        fields: of the API, or of a request.
        pictures: contents of files by image and mask; None for a call that brings none.

    Raises:
        SdengineError: a field is unknown, missing or not acceptable, or there is no such model.
    """
    options, rest = read_options(fields, kind)
    bundle, model = bundle_and_model(service, rest.pop("model", None), rest.pop("bundle", None))
    if model is not None:
        rest["model"] = model
    images: tuple[bytes, ...] = ()
    mask = None
    if pictures is not None:
        images, mask = _files(service, kind, rest, pictures)
    if kind == VARIATIONS:
        rest.setdefault("prompt", "")
    if options.n is not None:
        rest[IMAGES_PER_PROMPT] = options.n
    if options.size is not None:
        rest["width"], rest["height"] = options.size
    keywords = read_payload(rest, service.catalogue, service.pictures)
    call = Call(service, options, bundle, keywords, images, mask, kind)
    call.check_all()
    return call


def _files(
    service: Service, kind: str, rest: Mapping[str, Any], pictures: Mapping[str, list[bytes]]
) -> tuple[tuple[bytes, ...], bytes | None]:
    for name in ("image", "mask"):
        if name in rest:
            raise ConfigError(f"{name}: send it as a part of the form, as a file.")
    if "markup" in pictures:
        raise ConfigError.for_field("markup", "a picture", f"none for {kind}", "Give a mask.")
    images, masks = pictures.get("image", []), pictures.get("mask", [])
    if not images:
        raise ConfigError("image: it is missing.")
    most = min(MAX_PICTURES, service.limits.max_images) if kind == EDITS else 1
    if len(images) > most:
        raise ConfigError.for_field("image", f"{len(images)} pictures", f"at most {most}")
    if len(masks) > (1 if kind == EDITS else 0):
        accepted = "one, for the first picture" if kind == EDITS else "none for variations"
        raise ConfigError.for_field("mask", f"{len(masks)} pictures", accepted)
    return tuple(images), masks[0] if masks else None
