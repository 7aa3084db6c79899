"""Metadata of PNG files: how an image was made, written beside its pixels, read as untrusted input.

Two text chunks: `parameters`, the form that image tools read, and `sdengine`, JSON with the exact
request of that one image and what ran it. The chunk's `format` is the version of the request in it
too; both are as the first release wrote them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from sdengine.errors import ConfigError
from sdengine.images.png_text import read_text
from sdengine.images.provenance import Provenance
from sdengine.images.web_ui_text import parse_parameters
from sdengine.request.request import JSON_VERSION, Request, checked_fields

CHUNK = "sdengine"
PARAMETERS = "parameters"
FORMAT = JSON_VERSION
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,60}( [A-Za-z0-9_.+-]{1,60}){0,20}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMES = ("backend", "precision", "version", "processor")


@dataclass(frozen=True)
class Metadata:
    """What was read from an image.

    Args:
        fields: of `Request`, checked; only those that the file names.
        provenance: what made it, as far as the file says; without the model's name.
        not_understood: keys of the file's parameters that have no counterpart here.
    """

    fields: dict[str, Any]
    provenance: Provenance = field(default_factory=Provenance)
    not_understood: tuple[str, ...] = ()

    def request_fields(self) -> dict[str, Any]:
        """Return keyword arguments for `Engine.generate` and `Engine.request`."""
        return dict(self.fields)

    def differences(self, now: Provenance) -> list[str]:
        """Say in sentences why an engine of this provenance may not give the same picture again."""
        lines = self.provenance.differences(now)
        if self.not_understood:
            lines.append(f"not understood and left out: {', '.join(self.not_understood)}.")
        return lines


def describe_image(request: Request, provenance: Provenance) -> str:
    """Return the JSON text of one image.

    Args:
        request: of that image alone. Its place in a batch is not in it: made again alone, the
            image gives the same file.
        provenance: what made it.
    """
    content = {
        "format": FORMAT,
        "request": asdict(request),
        "model": {"name": provenance.model, "sha256": provenance.model_hash},
        "bundle": provenance.bundle_hash,
        "backend": provenance.backend,
        "precision": provenance.precision,
        "threads": provenance.threads,
        "version": provenance.version,
        "processor": provenance.processor,
    }
    return json.dumps(content, ensure_ascii=False)


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read how an image was made.

    Args:
        path: a PNG file that this product or another one with `parameters` text wrote.

    Raises:
        ConfigError: it is no such file, or what it says is damaged or out of range.
    """
    texts = read_text(path, (CHUNK, PARAMETERS))
    if CHUNK in texts:
        try:
            return _from_chunk(texts[CHUNK])
        except ConfigError as error:
            raise ConfigError(f"from: {str(path)!r}: {str(error)[:300]}") from None
    if PARAMETERS in texts:
        return _from_parameters(str(path), texts[PARAMETERS])
    raise ConfigError(
        f"from: {str(path)!r} says nothing about how it was made; expected a PNG with a text chunk "
        f"{CHUNK!r} or {PARAMETERS!r}."
    )


def _from_chunk(text: str) -> Metadata:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"its {CHUNK} chunk is not valid JSON.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"its {CHUNK} chunk is not of format {FORMAT}.")
    model, request = content.get("model"), content.get("request")
    if not isinstance(model, dict):
        raise ConfigError(f"its {CHUNK} chunk lacks the model.")
    if not isinstance(request, dict):
        raise ConfigError(f"its {CHUNK} chunk lacks the request.")
    threads = content.get("threads")
    provenance = Provenance(
        **{name: _match(_NAME, content.get(name)) for name in _NAMES},
        threads=threads if type(threads) is int and 1 <= threads <= 4096 else None,
        model_hash=_match(_SHA256, model.get("sha256")),
        bundle_hash=_match(_SHA256, content.get("bundle")),
    )
    return Metadata(checked_fields(request), provenance)


def _from_parameters(path: str, text: str) -> Metadata:
    found = parse_parameters(text)
    try:
        Request(**found.fields)
    except ConfigError as error:
        raise ConfigError(f"from: {path!r}: {str(error)[:300]}") from None
    return Metadata(found.fields, Provenance(model_hash=found.model_hash), found.not_understood)


def _match(pattern: re.Pattern[str], value: object) -> str:
    """Return the text if it has that form, or none: it may end up in a terminal."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""
