"""Form of a call: the parts of a multipart body, with texts read as what their fields hold.

Nothing is written to a disk, and no name that a client gives its files is looked at.
Source: RFC 7578; objects and lists as the API's own client writes them, `name[key]` and `name[]`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from sdengine.errors import ConfigError
from sdengine.request.fields import Choice, Color, Name, OneOrEach, Text
from sdengine.request.picture_fields import PICTURES
from sdengine.request.request import FIELDS
from sdengine.serving.openai.fields import CHECKS, EDITS

_MAX_PARTS = 200
_MAX_HEAD_BYTES = 2048
_MAX_DEPTH = 4
_PICTURE = re.compile(r"(image|mask|markup)(\[[0-9]{0,3}\])?")
_NAME = re.compile(r"([^\[\]]{1,80})((?:\[[^\[\]]{0,200}\])*)")
_NAMES = ("model", "hires_model", "bundle")
_AS_TEXT = (Text, Name, Choice, Color)
_ACCEPTED = "multipart/form-data, as RFC 7578 says"


def read_form(content_type: str, body: bytes) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Return the fields of a form, and its pictures by the names of their parts: image, mask.

    Args:
        content_type: of the body.
        body: of a bounded size.

    Raises:
        ConfigError: it is no form, has too many parts, or a name that says nothing.
    """
    kind, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise ConfigError.for_field("content-type", content_type[:200], _ACCEPTED)
    fields: dict[str, Any] = {}
    pictures: dict[str, list[bytes]] = {}
    for name, content in _parts(boundary, body):
        if found := _PICTURE.fullmatch(name):
            pictures.setdefault(found[1], []).append(content)
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise ConfigError(f"{name[:80]!r}: it is no text in UTF-8.") from None
        _put(fields, name, text)
    return fields, pictures


class _Parts:
    """Parts as the parser finds them."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bytes]] = []
        self._key, self._value = bytearray(), bytearray()
        self._head_bytes = 0
        self._disposition = ""
        self._content: list[bytes] = []

    def on_part_begin(self) -> None:
        if len(self.found) >= _MAX_PARTS:
            raise ConfigError(f"request: it has more than {_MAX_PARTS} parts.")
        self._disposition, self._content, self._head_bytes = "", [], 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._key += self._of_head(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._of_head(data, start, end)

    def on_header_end(self) -> None:
        if self._key.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")
        self._key.clear()
        self._value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def on_part_end(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise ConfigError("request: a part has no name.")
        self.found.append((name, b"".join(self._content)))

    def _of_head(self, data: bytes, start: int, end: int) -> bytes:
        self._head_bytes += end - start
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise ConfigError(f"request: the head of a part has more than {_MAX_HEAD_BYTES} bytes.")
        return data[start:end]


def _parts(boundary: bytes, body: bytes) -> list[tuple[str, bytes]]:
    parts = _Parts()
    is_whole = False

    def on_end() -> None:
        nonlocal is_whole
        is_whole = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.on_part_begin,
                "on_header_field": parts.on_header_field,
                "on_header_value": parts.on_header_value,
                "on_header_end": parts.on_header_end,
                "on_part_data": parts.on_part_data,
                "on_part_end": parts.on_part_end,
                "on_end": on_end,
            },
        )
        parser.write(body)
    except FormParserError:
        raise ConfigError("request: it is not valid multipart/form-data.") from None
    if not is_whole:
        raise ConfigError("request: its multipart/form-data has no end.")
    return parts.found


def _put(fields: dict[str, Any], written: str, text: str) -> None:
    """Put a text into the fields, perhaps into an object or a list that is one of them."""
    found = _NAME.fullmatch(written)
    if found is None:
        raise ConfigError(f"{written[:80]!r}: it is no name of a field.")
    name = found[1]
    keys = re.findall(r"\[([^\[\]]*)\]", found[2])
    if len(keys) > _MAX_DEPTH:
        raise ConfigError(f"{name[:80]!r}: it goes too deep; send its JSON as the field's text.")
    is_known = name in FIELDS or name in CHECKS[EDITS]
    if not text and not keys and is_known and not _is_text(name):
        return  # an input that nobody filled in
    place: Any = fields
    key: Any = name
    for following in keys:
        place = _entered(place, key, following, written)
        key = following
    value = _value(name, text, is_inside=bool(keys))
    if isinstance(place, list) and key == "":
        place.append(value)
    elif not isinstance(place, dict) or key in place:
        raise _twice(written)
    else:
        place[key] = value


def _entered(place: Any, key: str, following: str, written: str) -> Any:
    """Return the list or object that stands at a key, made where it is not there."""
    kind = list if following == "" else dict
    if isinstance(place, list):
        # The client writes the keys of one object after the other: a known key begins a new one.
        if key != "" or kind is list:
            raise _twice(written)
        if not place or not isinstance(place[-1], dict) or following in place[-1]:
            place.append({})
        return place[-1]
    if key not in place:
        place[key] = kind()
    if not isinstance(place[key], kind):
        raise _twice(written)
    return place[key]


def _twice(written: str) -> ConfigError:
    return ConfigError(f"{written[:80]!r}: it is given twice, or as different things.")


def _value(name: str, text: str, *, is_inside: bool) -> Any:
    """Return what a text says, as the field holds it; what cannot be read its check refuses."""
    is_name = name in _NAMES and not is_inside and not text.startswith("{")
    if is_name or name in PICTURES or _is_text(name):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text, text)


def _is_text(name: str) -> bool:
    check = FIELDS[name].check if name in FIELDS else CHECKS[EDITS].get(name)
    return isinstance(check.check if isinstance(check, OneOrEach) else check, _AS_TEXT)
