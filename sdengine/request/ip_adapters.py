"""IP-Adapters of a request: each with the pictures that it prompts with, and how far."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs import image_embeds, ip_adapters, picture
from sdengine.inputs.image_embeds import ImageEmbeds
from sdengine.inputs.ip_adapters import IPAdapterFile
from sdengine.inputs.recorded import Recorded, read_record
from sdengine.request.fields import FieldInfo, FileField, Number, about, as_arguments, field_infos

MAX_IP_ADAPTERS = 8
MAX_PICTURES = 16
_MAX_BLOCKS = 200
_FACTOR = Number(-10, 10)
_PATH = re.compile(
    r"(?:(?:down|up)_blocks(?:\.[0-9]{1,2}(?:\.attentions\.[0-9]{1,2})?)?|mid_block(?:\.attentions\.0)?)"
)
_SIDES = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
_BLOCK = re.compile(r"block_([0-9]{1,2})")


@dataclass(frozen=True)
class PicturesField:
    """A picture or a list of them, which are read at once."""

    accepted: str = f"{picture.ACCEPTED}, or a list of up to {MAX_PICTURES} of them"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[Recorded, ...]:
        """Return the pictures."""
        if not isinstance(value, (list, tuple)):
            value = (value,)
        if not 0 <= len(value) <= MAX_PICTURES:
            raise ConfigError.for_field(name, f"{len(value)} pictures", self.accepted)
        return tuple(picture.read_picture(name, one) for one in value)


@dataclass(frozen=True)
class Blocks:
    """Factors on the scale by a part of the U-Net; what is not named has 0."""

    accepted: str = (
        "factors by part of the U-Net, such as {'up_blocks.0.attentions.1': 1.0}, or as diffusers "
        "writes them, such as {'down': {'block_2': [0.0, 1.0]}, 'up': {'block_0': [0.0, 1.0, 0.0]}}"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[tuple[str, float], ...]:
        """Return factors by path, in the order of the paths."""
        if isinstance(value, tuple):  # checked before
            value = dict(value) if all(isinstance(v, tuple) and len(v) == 2 for v in value) else 0
        if not isinstance(value, Mapping) or not 0 < len(value) <= _MAX_BLOCKS:
            raise ConfigError.for_field(name, value, self.accepted)
        found: dict[str, float] = {}
        for path, factor in self._flat(name, value):
            if _PATH.fullmatch(path) is None or len(found) >= _MAX_BLOCKS:
                raise ConfigError.for_field(name, path, self.accepted)
            found[path] = _FACTOR(name, factor)
        return tuple(sorted(found.items()))

    def _flat(self, name: str, value: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
        for key, one in value.items():
            if not isinstance(key, str):
                raise ConfigError.for_field(name, key, self.accepted)
            if key not in _SIDES:
                yield key, one
                continue
            parts = one if isinstance(one, Mapping) else {"": one}
            for block, factors in parts.items():
                match = _BLOCK.fullmatch(str(block))
                if block and (match is None or key == "mid"):
                    raise ConfigError.for_field(name, block, self.accepted)
                path = f"{_SIDES[key]}.{match[1]}" if match else _SIDES[key]
                if isinstance(factors, (list, tuple)) and len(factors) == 1:
                    factors = factors[0]
                if not isinstance(factors, (list, tuple)):
                    yield path, factors
                    continue
                if match is None:
                    raise ConfigError.for_field(name, factors, self.accepted)
                yield from ((f"{path}.attentions.{i}", f) for i, f in enumerate(factors))


@dataclass(frozen=True)
class IPAdapter:
    """One IP-Adapter of a request; constructing it checks every field.

    Args:
        {fields}

    Raises:
        ConfigError: a field has the wrong type or is out of range; the message names it.
        AdapterError: the file is damaged or no IP-Adapter.

    Source: "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models"
    (Ye et al. 2023); scales by block as in "InstantStyle" (Wang et al. 2024).
    """

    # What callers may give is more than what it is once it is checked: Recorded and the like.
    file: Any = field(
        metadata=about(
            FileField(ip_adapters.ACCEPTED, ip_adapters.read_ip_adapter),
            "the adapter: a path, .safetensors or .bin in the layout of the published ones",
        )
    )
    image: Any = field(
        default=(),
        metadata=about(
            PicturesField(),
            "what it prompts with: a path, a PIL image, an array or a file's bytes, or a list of "
            "them, which are seen at once",
        ),
    )
    embeds: Any = field(
        default=None,
        metadata=about(
            FileField(image_embeds.ACCEPTED, image_embeds.read_image_embeds),
            "in place of image, what an image encoder made of it: an array or a file",
        ),
    )
    scale: float = field(
        default=1.0,
        metadata=about(_FACTOR, "factor on what it adds; with 0 nothing of it is computed"),
    )
    start: float = field(
        default=0.0,
        metadata=about(Number(0, 1), "evaluation i of n is prompted if start <= i / n"),
    )
    end: float = field(default=1.0, metadata=about(Number(0, 1), "and if (i + 1) / n <= end"))
    blocks: Any = field(
        default=None,
        metadata=about(
            Blocks(),
            "factors on scale by part of the U-Net, by default 1 everywhere; what is not named has "
            "0: for SDXL, {'up_blocks.0.attentions.1': 1} takes over the style alone",
        ),
    )

    def __post_init__(self) -> None:
        for name, info in IP_ADAPTER_FIELDS.items():
            value = getattr(self, name)
            if value is not None or info.default is not None:
                object.__setattr__(self, name, info.check(f"ip_adapter.{name}", value))
        if self.start >= self.end:
            raise ConfigError.for_field(
                "ip_adapter.start", self.start, f"less than end, which is {self.end:g}"
            )
        if bool(self.image) == (self.embeds is not None):
            raise ConfigError(
                "ip_adapter: give either image or embeds, a picture or what an encoder made of it."
            )
        if isinstance(self.file, IPAdapterFile):
            projection = self.file.projection
            if self.image and projection.reads == "given":
                raise ConfigError(
                    "ip_adapter.image: a FaceID adapter reads no picture; give embeds, the "
                    f"{projection.in_width} numbers that a network for faces makes of one."
                )
            if isinstance(self.embeds, ImageEmbeds):
                self.embeds.rows("ip_adapter.embeds", projection)

    @property
    def is_given(self) -> bool:
        """Whether more is known than records; a request cannot run before it is."""
        inputs = (self.file, *self.image, *(() if self.embeds is None else (self.embeds,)))
        return all(one.is_given for one in inputs)

    def to_dict(self) -> dict[str, Any]:
        """Return every field by name as JSON holds it; files and pictures are records."""
        return {
            "file": self.file.record(),
            "image": [one.record() for one in self.image],
            "embeds": None if self.embeds is None else self.embeds.record(),
            "scale": self.scale,
            "start": self.start,
            "end": self.end,
            "blocks": None if self.blocks is None else dict(self.blocks),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> IPAdapter:
        """Return the adapter that has these fields.

        Raises:
            ConfigError: one is unknown, missing, or not acceptable.
        """
        for name in values:
            if name not in IP_ADAPTER_FIELDS:
                near = difflib.get_close_matches(str(name)[:80], IP_ADAPTER_FIELDS, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                known = ", ".join(IP_ADAPTER_FIELDS)
                raise ConfigError(
                    f"ip_adapter.{str(name)[:80]}: an IP-Adapter has no such field; it has {known}."
                    f"{hint}"
                )
        if "file" not in values:
            raise ConfigError("ip_adapter.file: it is missing.")
        return cls(**values)


IP_ADAPTER_FIELDS: Mapping[str, FieldInfo] = MappingProxyType(field_infos(IPAdapter))
IPAdapter.__doc__ = str(IPAdapter.__doc__).format(
    fields=as_arguments(IP_ADAPTER_FIELDS.values(), 8)
)


@dataclass(frozen=True)
class IPAdapters:
    """Some IP-Adapters, each an IPAdapter or its fields by name."""

    accepted: str = f"a list of up to {MAX_IP_ADAPTERS} sdengine.IPAdapter"
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[IPAdapter, ...]:
        """Return a tuple of them."""
        if isinstance(value, (IPAdapter, Mapping)):
            value = (value,)
        if not isinstance(value, (list, tuple)) or len(value) > MAX_IP_ADAPTERS:
            raise ConfigError.for_field(name, value, self.accepted)
        found = []
        for one in value:
            if not isinstance(one, (IPAdapter, Mapping)):
                raise ConfigError.for_field(name, one, self.accepted)
            found.append(one if isinstance(one, IPAdapter) else IPAdapter.of(one))
        return tuple(found)


def read_ip_adapters(value: Any) -> Any:
    """Return the adapters of JSON from whomever, not yet checked but for what are records.

    Raises:
        ConfigError: a record is none; a path in JSON is never opened.
    """
    if not isinstance(value, list):
        return value  # which the request refuses
    return [_of_record(one) if isinstance(one, Mapping) else one for one in value]


def _of_record(values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    if "file" in found:
        found["file"] = read_record("ip_adapter.file", found["file"], has_size=False)
    if found.get("embeds") is not None:
        found["embeds"] = read_record("ip_adapter.embeds", found["embeds"], has_size=False)
    if "image" in found:
        images = found["image"]
        if not isinstance(images, list) or len(images) > MAX_PICTURES:
            raise ConfigError.for_field("ip_adapter.image", images, "a list of records")
        found["image"] = [read_record("ip_adapter.image", one) for one in images]
    return found
