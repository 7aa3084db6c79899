"""Schemas of OpenAI's calls, for documents and clients: made from the fields' own checks."""

from __future__ import annotations

from typing import Any

from sdengine.request.fields import Check, Choice, Flag, Integer
from sdengine.request.picture_fields import PICTURES
from sdengine.serving.openai.fields import CHECKS, EDITS, VARIATIONS
from sdengine.serving.payload_schema import payload_schema

_FILE = {"type": "string", "format": "binary"}
_MORE = {
    "bundle": {"type": "string", "description": "which runs the model, where that is a checkpoint"},
    "cfg_scale": {"type": "number", "description": "guidance_scale"},
}


def json_body(kind: str) -> dict[str, Any]:
    """Return what a description of a call says of its body in JSON."""
    schema = payload_schema()
    schema["properties"] |= _own(kind) | _MORE
    return _body("application/json", schema)


def form_body(kind: str) -> dict[str, Any]:
    """Return what a description of a call says of its form; its texts hold the same values."""
    schema = payload_schema()
    properties = {name: one for name, one in schema["properties"].items() if name not in PICTURES}
    properties |= _own(kind) | _MORE | {"image": _FILE}
    if kind == EDITS:
        properties |= {"image[]": {"type": "array", "items": _FILE}, "mask": _FILE}
    schema["required"] = [] if kind == VARIATIONS else ["prompt"]
    return _body("multipart/form-data", {**schema, "properties": properties})


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _own(kind: str) -> dict[str, Any]:
    return {name: _of(check) for name, check in CHECKS[kind].items()}


def _of(check: Check) -> dict[str, Any]:
    if isinstance(check, Integer):
        return {"type": "integer", "minimum": check.low, "maximum": check.high}
    if isinstance(check, Choice):
        return {"type": "string", "enum": list(check.names)}
    return {"type": "boolean" if isinstance(check, Flag) else "string"}
