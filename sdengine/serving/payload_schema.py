"""Schema of payloads, for documents and clients: made from the fields' own checks."""

from __future__ import annotations

from typing import Any

from sdengine.request import fields
from sdengine.request.picture_fields import PICTURES
from sdengine.request.request import FIELDS, JSON_VERSION

_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_PICTURE = {"type": "string", "contentEncoding": "base64"}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
# Where a payload holds something else than `sdengine.Request`; see payload.py.
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(PICTURES, _PICTURE),
    "hires_model": {"type": "string"},
    "model": {"anyOf": [{"type": "string"}, _NUMBERS]},
    "loras": {
        "type": "object",
        "additionalProperties": {
            "anyOf": [
                {"type": "number"},
                {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
            ]
        },
    },
    "hypernetworks": _NUMBERS,
    "embeddings": {"type": "array", "items": {"type": "string"}},
    "controls": _OBJECTS,
    "ip_adapters": _OBJECTS,
    "regions": _OBJECTS,
}


def payload_schema() -> dict[str, Any]:
    """Return the JSON schema of a payload; see `read_payload`."""
    properties: dict[str, Any] = {"version": {"const": JSON_VERSION}}
    for name, info in FIELDS.items():
        schema = dict(_OWN.get(name) or _of(info.check))
        if info.default is None:
            schema = {"anyOf": [schema, {"type": "null"}]}
        properties[name] = {**schema, "description": info.help}
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": False,
        "properties": properties,
    }


def _of(check: fields.Check) -> dict[str, Any]:
    if isinstance(check, fields.OneOrEach):
        one = _of(check.check)
        return {"anyOf": [one, {"type": "array", "items": one}]}
    if isinstance(check, fields.Integer):
        return {
            "type": "integer",
            "minimum": check.low,
            "maximum": check.high,
            "multipleOf": check.multiple,
        }
    if isinstance(check, fields.Number):
        return {"type": "number", "minimum": check.low, "maximum": check.high}
    if isinstance(check, fields.Flag):
        return {"type": "boolean"}
    if isinstance(check, fields.Choice):
        return {"enum": list(check.names)}
    if isinstance(check, (fields.Pair, fields.Interval)):
        return {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    if isinstance(check, (fields.Text, fields.Name, fields.Color)):
        return {"type": "string"}
    return {}
