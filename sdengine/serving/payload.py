"""Payload: a request as JSON that a client writes, with its pictures in it and its files by name.

Its fields are those of `sdengine.Request`; where that takes a picture there is base64 here, where
it takes a file there is a name of the catalogue. Nothing in it is a path or an address.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from sdengine.errors import ConfigError
from sdengine.inputs.loras import Strength
from sdengine.inputs.models import OWN
from sdengine.inputs.picture import opened
from sdengine.inputs.recorded import Recorded
from sdengine.request.keywords import ALIASES, WEB_UI_CLIP_SKIP
from sdengine.request.picture_fields import PICTURES
from sdengine.request.request import JSON_VERSION, Request, refuse_unknown
from sdengine.serving.catalogue import Catalogue

_DATA_URL = re.compile(r"data:image/[A-Za-z0-9.+-]{1,40};base64,")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}://")
_BASE64 = "a picture in base64, with or without data:image/png;base64, before it"
_MAX_EMBEDS = 1 << 20
_NO_ALSO = {"version": "", **ALIASES, WEB_UI_CLIP_SKIP: ""}


# Of one request, before any of them is decoded: they are held until it was served.
_MOST_OF_ONE = 4
_of_one_request: ContextVar[list[int] | None] = ContextVar("pixels of one request", default=None)


@contextmanager
def one_request() -> Iterator[None]:
    """Bound what the pictures that are read inside the block have together."""
    token = _of_one_request.set([0])
    try:
        yield
    finally:
        _of_one_request.reset(token)


def picture_bytes(request: Request) -> int:
    """Return about what the pictures of a request take, decoded."""
    pictures = [request.image, request.mask, request.depth]
    pictures += [control.image for control in request.controls]
    pictures += [region.mask for region in request.regions]
    pictures += [image for adapter in request.ip_adapters for image in adapter.image]
    return sum(4 * one.size[0] * one.size[1] for one in pictures if isinstance(one, Recorded))


class Pictures(Protocol):
    """How the pictures of a payload are had."""

    def __call__(self, field: str, value: object) -> bytes:
        """Return the content of a picture's file, its size checked.

        Args:
            field: what errors call it.
            value: what the payload has in its place.

        Raises:
            ConfigError: it is none, or too large.
        """
        ...


class InBase64:
    """Pictures that are themselves in the payload.

    Args:
        max_pixels: of one of them.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels

    def __call__(self, field: str, value: object) -> bytes:
        """Return the content of a picture's file; see `Pictures`."""
        if isinstance(value, str) and _ADDRESS.match(value):
            hint = "No address is fetched: send the picture itself."
            raise ConfigError.for_field(field, value, _BASE64, hint)
        if not isinstance(value, str) or not value:
            raise ConfigError.for_field(field, value, _BASE64)
        start = match.end() if (match := _DATA_URL.match(value)) else 0
        text = value[start:] if start else value
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            try:  # lines, as MIME breaks them
                content = base64.b64decode("".join(text.split()), validate=True)
            except (binascii.Error, ValueError):
                raise ConfigError.for_field(field, value[:40], _BASE64) from None
        return self.checked(field, content)

    def checked(self, field: str, content: bytes) -> bytes:
        """Return a file's content if it is a picture that is not too large, by what its head says.

        Raises:
            ConfigError: it is not.
        """
        with opened(field, content, "the content") as image:
            pixels = image.width * image.height
            if pixels > self.max_pixels:
                shown = f"{image.width}x{image.height}"
                accepted = f"a picture of at most {self.max_pixels} pixels"
                raise ConfigError.for_field(field, shown, accepted)
        total = _of_one_request.get()
        if total is not None:
            total[0] += pixels
            if total[0] > _MOST_OF_ONE * self.max_pixels:
                accepted = f"pictures of at most {_MOST_OF_ONE * self.max_pixels} pixels together"
                raise ConfigError.for_field(field, f"{total[0]} pixels with it", accepted)
        return content


def read_payload(
    fields: Mapping[str, Any], catalogue: Catalogue, pictures: Pictures
) -> dict[str, Any]:
    """Return the keywords of `Engine.request` that a payload says; they are not yet checked.

    Args:
        fields: `prompt` and other fields of `sdengine.Request`, or their names in diffusers.
            image, mask, depth: pictures. controls: objects with a picture as `image`. regions:
            objects, perhaps with a picture as `mask`. ip_adapters: objects with `file`, a name,
            and `image`, a picture or a list of them, or `embeds`, lists of numbers. loras and
            hypernetworks: strength by name, for LoRAs perhaps two. embeddings: a list of names.
            model: a name, or shares by name. hires_model: the name of an upscaler.
        catalogue: what names stand for.
        pictures: how those are had.

    Raises:
        ConfigError: a field is unknown or missing, no picture, or names what is not there.
    """
    if not isinstance(fields, Mapping):
        raise ConfigError.for_field("request", fields, "an object of fields by name")
    refuse_unknown(fields, also=_NO_ALSO)
    found = {name: value for name, value in fields.items() if value is not None}
    version = found.pop("version", JSON_VERSION)
    if type(version) is not int or version != JSON_VERSION:
        raise ConfigError.for_field("version", version, str(JSON_VERSION))
    if "prompt" not in found:
        raise ConfigError("prompt: it is missing.")
    for name in PICTURES:
        if name in found:
            found[name] = pictures(name, found[name])

    def picture_in(field: str) -> Callable[[object], bytes]:
        return lambda value: pictures(field, value)

    _replace_in(found, "controls", {"image": picture_in("control.image")})
    _replace_in(found, "regions", {"mask": picture_in("region.mask")})
    _replace_in(
        found,
        "ip_adapters",
        {
            "file": lambda name: catalogue.path("ip_adapter.file", "ip_adapter", name),
            "image": lambda value: _all_of(value, picture_in("ip_adapter.image")),
            "embeds": _embeds,
        },
    )
    return found | _weights(found, catalogue)


def _weights(found: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "hires_model" in found:
        values["hires_model"] = catalogue.path("hires_model", "upscaler", found["hires_model"])
    if "loras" in found:
        strengths = _by_name("loras", found["loras"], "strengths by name")
        values["loras"] = {
            catalogue.path("loras", "lora", name): _strength(one) for name, one in strengths.items()
        }
    if "hypernetworks" in found:
        nets = _by_name("hypernetworks", found["hypernetworks"], "strengths by name")
        values["hypernetworks"] = {
            catalogue.path("hypernetworks", "hypernetwork", name): one for name, one in nets.items()
        }
    if "embeddings" in found:
        names = found["embeddings"]
        if not isinstance(names, list):
            raise ConfigError.for_field("embeddings", names, "a list of names")
        values["embeddings"] = [catalogue.path("embeddings", "embedding", name) for name in names]
    if "model" in found:
        values["model"] = _model(found["model"], catalogue)
    return values


def _model(value: Any, catalogue: Catalogue) -> Any:
    if isinstance(value, str):
        return OWN if value == OWN else catalogue.path("model", "model", value)
    shares = _by_name("model", value, "a name, or shares by name")
    return {
        name if name == OWN else catalogue.path("model", "model", name): share
        for name, share in shares.items()
    }


def _by_name(field: str, value: Any, accepted: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError.for_field(field, value, accepted)
    return value


def _strength(value: Any) -> Strength:
    return tuple(value) if isinstance(value, list) else value  # two: text encoders, U-Net


def _replace_in(
    found: dict[str, Any], field: str, readers: Mapping[str, Callable[[Any], Any]]
) -> None:
    """Replace what some keys of a list's objects hold; what is no such list the request refuses."""
    value = found.get(field)
    if isinstance(value, list):
        found[field] = [
            {k: readers[k](v) if k in readers and v is not None else v for k, v in one.items()}
            if isinstance(one, Mapping)
            else one
            for one in value
        ]
    elif value is not None:
        raise ConfigError.for_field(field, value, "a list of objects")


def _all_of(value: Any, read: Callable[[object], bytes]) -> list[bytes]:
    return [read(one) for one in (value if isinstance(value, list) else [value])]


def _embeds(value: Any) -> Any:
    accepted = f"lists of up to {_MAX_EMBEDS} numbers"
    try:
        array = np.asarray(value)
    except ValueError:
        raise ConfigError.for_field("ip_adapter.embeds", value, accepted) from None
    if array.dtype.kind not in "fiu" or array.size > _MAX_EMBEDS:
        raise ConfigError.for_field("ip_adapter.embeds", value, accepted)
    return array.astype(np.float32)
