"""What a PNG file says about how it was made: written beside the pixels, read as untrusted input.

Two text chunks: `parameters`, the form that image tools read, and `sdengine`, JSON with the exact
request of that one image and what ran it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError
from sdengine.images.png_text import read_text
from sdengine.images.provenance import processor
from sdengine.images.web_ui_text import parse_parameters
from sdengine.request.request import Request

if TYPE_CHECKING:
    from sdengine.engine import Engine
    from sdengine.images.result import Result

CHUNK = "sdengine"
PARAMETERS = "parameters"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,60}( [A-Za-z0-9_.+-]{1,60}){0,20}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Metadata:
    """What was read from an image.

    Args:
        fields: of `Request`, checked; only those that the file names.
        backend, precision, threads: what ran it; None where the file does not say.
        version, processor: of sdengine and of the CPU, likewise.
        model_hash: SHA-256 of the checkpoint, or its first digits; "" where the file does not say.
        bundle_hash: SHA-256 of the bundle's manifest, likewise.
        not_understood: keys of the file's parameters that have no counterpart here.
    """

    fields: dict[str, Any]
    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    version: str | None = None
    processor: str | None = None
    model_hash: str = ""
    bundle_hash: str = ""
    not_understood: tuple[str, ...] = field(default=())

    def request_fields(self) -> dict[str, Any]:
        """Return keyword arguments for `Engine.generate`."""
        return dict(self.fields)

    def differences(self, engine: Engine) -> list[str]:
        """Say in sentences why the engine may not give the same picture again."""
        from sdengine.version import __version__

        lines = []
        source = engine.bundle.manifest.source.sha256
        if self.bundle_hash and self.bundle_hash != engine.bundle.sha256:
            lines.append("the image was made with another bundle, so the picture will differ.")
        elif self.model_hash and not source.startswith(self.model_hash):
            lines.append("the image was made with another model, so the picture will differ.")
        for what, wanted, found in (
            ("backend", self.backend, engine.backend.name),
            ("precision", self.precision, engine.precision),
            ("sdengine", self.version, __version__),
            ("processor", self.processor, processor()),
        ):
            if wanted and wanted != found:
                lines.append(f"the image was made with {what} {wanted}, not {found}.")
        if self.not_understood:
            lines.append(f"not understood and left out: {', '.join(self.not_understood)}.")
        return lines


def describe_image(result: Result, index: int) -> str:
    """Return the JSON text of one image.

    Its place in the batch is not in it: made again alone, the image gives the same file.
    """
    from sdengine.version import __version__

    content = {
        "format": FORMAT,
        "request": asdict(result.request.only(index)),
        "model": {"name": result.model, "sha256": result.model_hash},
        "bundle": result.bundle_hash,
        "backend": result.backend,
        "precision": result.precision,
        "threads": result.threads,
        "version": __version__,
        "processor": processor(),
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
    model, threads = content.get("model"), content.get("threads")
    if not isinstance(model, dict):
        raise ConfigError(f"its {CHUNK} chunk lacks the model.")
    return Metadata(
        _request_fields(content.get("request")),
        backend=_match(_NAME, content.get("backend")),
        precision=_match(_NAME, content.get("precision")),
        threads=threads if type(threads) is int and 1 <= threads <= 4096 else None,
        version=_match(_NAME, content.get("version")),
        processor=_match(_NAME, content.get("processor")),
        model_hash=_match(_SHA256, model.get("sha256")) or "",
        bundle_hash=_match(_SHA256, content.get("bundle")) or "",
    )


def _request_fields(values: object) -> dict[str, Any]:
    """Return the fields as a request holds them."""
    if not isinstance(values, dict) or "prompt" not in values:
        raise ConfigError(f"its {CHUNK} chunk lacks the request or its prompt.")
    unknown = sorted(values.keys() - {one.name for one in fields(Request)})
    if unknown:
        raise ConfigError(f"field {unknown[0][:80]!r} is unknown to this release.")
    request = Request(**values)
    return {name: getattr(request, name) for name in values}


def _from_parameters(path: str, text: str) -> Metadata:
    found = parse_parameters(text)
    try:
        Request(**found.fields)
    except ConfigError as error:
        raise ConfigError(f"from: {path!r}: {str(error)[:300]}") from None
    return Metadata(found.fields, model_hash=found.model_hash, not_understood=found.not_understood)


def _match(pattern: re.Pattern[str], value: object) -> str | None:
    """Return the text if it has that form: it may end up in a terminal."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else None
