"""Metadata of pictures: how an image was made, written beside its pixels, read as untrusted input.

Two text chunks of a PNG: `parameters`, the form that image tools read, and `sdengine`, JSON with
the exact request of that one image and what ran it. The chunk's `format` is the version of the
request in it too; both are as the first release wrote them. Of other tools' pictures the text of
web UIs is read, in EXIF and in pixels too, and the JSON of NovelAI and ComfyUI.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sdengine.errors import ConfigError
from sdengine.images import comfyui, novelai
from sdengine.images.exif_text import COMMENT, MAX_TEXT_BYTES
from sdengine.images.picture_text import read_text
from sdengine.images.pixel_text import pixel_text
from sdengine.images.provenance import Provenance, read_bands
from sdengine.images.web_ui_text import parse_parameters
from sdengine.request.keywords import IMAGES_PER_PROMPT, WEB_UI_CLIP_SKIP
from sdengine.request.request import JSON_VERSION, Request, read_fields

CHUNK = "sdengine"
PARAMETERS = "parameters"
FORMAT = JSON_VERSION
_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,60}( [A-Za-z0-9_.+-]{1,60}){0,20}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMES = ("backend", "precision", "version", "processor")
_GRAPH, _NOVELAI, _DESCRIPTION = "prompt", "Comment", "Description"
# Of EXIF; ComfyUI writes WebP files with its JSON behind a key in two of them.
_EXIF = (COMMENT, "ImageDescription", "Make", "Model")
# What says that another tool made a picture, in a way that is not read.
_FOREIGN = {
    "workflow": "ComfyUI's editor, without the graph that ran",
    "invokeai_metadata": "InvokeAI",
    "sd-metadata": "InvokeAI",
    "Dream": "InvokeAI",
    "fooocus_scheme": "Fooocus",
    "sui_image_params": "SwarmUI",
}
# Beyond these a picture's own word is not enough to begin.
LIMITS: Mapping[str, int] = MappingProxyType(
    {"batch_size": 16, "steps": 150, "width": 2048, "height": 2048}
    | {"seed_width": 2048, "seed_height": 2048, "hires": 2048, "hires_steps": 150, "outpaint": 2048}
)
_SHOWN = {"batch_size": "images"}
_SHOWN |= {name: f"pixels of {name}" for name in ("hires", "outpaint")}


@dataclass(frozen=True)
class Metadata:
    """What was read from an image.

    Args:
        fields: keywords of `Engine.request`, checked; only those that the file names.
        provenance: what made it, as far as the file says; without the model's name.
        not_understood: keys of the file's parameters that have no counterpart here.
        embeddings: name and SHA-256, or its first digits, of each textual inversion that was used.
        loras: name and the web UI's hash of those that tags in the prompt name.
    """

    fields: dict[str, Any]
    provenance: Provenance = field(default_factory=Provenance)
    not_understood: tuple[str, ...] = ()
    embeddings: tuple[tuple[str, str], ...] = ()
    loras: tuple[tuple[str, str], ...] = ()

    def request_fields(self) -> dict[str, Any]:
        """Return keyword arguments for `Engine.generate` and `Engine.request`."""
        return dict(self.fields)

    def beyond_limits(self, given: Collection[str] = ()) -> list[str]:
        """Say what the file asks for beyond LIMITS, as in "1000 steps (at most 150)".

        Args:
            given: keywords that the caller names itself, which replace the file's.
        """
        given = {*given, *(("batch_size",) if IMAGES_PER_PROMPT in given else ())}
        plain = {name: value for name, value in self.fields.items() if name != WEB_UI_CLIP_SKIP}
        request = Request(**plain)
        asked = {name: getattr(request, name) for name in LIMITS if name not in given}
        if request.hires is not None and "hires" in asked:
            asked["hires"] = max(request.hires_size(request.width, request.height))
        if request.outpaint is not None and "outpaint" in asked:
            asked["outpaint"] = max(request.outpaint.size(0, 0))
        return [
            f"{asked[name]} {_SHOWN.get(name, name)} (at most {most})"
            for name, most in LIMITS.items()
            if (asked.get(name) or 0) > most
        ]

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
        "request": request.to_dict(),
        "model": {"name": provenance.model, "sha256": provenance.model_hash},
        "bundle": provenance.bundle_hash,
        "backend": provenance.backend,
        "precision": provenance.precision,
        "threads": provenance.threads,
        "version": provenance.version,
        "processor": provenance.processor,
    }
    if provenance.vae_bands:
        content["vae_bands"] = [list(one) for one in provenance.vae_bands]
    return json.dumps(content, ensure_ascii=False)


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Read how an image was made.

    Args:
        path: a PNG, JPEG or WebP file of this product or another one. The pixels of one that has
            none of these texts are read too, where some tools hide one.

    Raises:
        ConfigError: it says nothing that is read, or what it says is damaged or out of range.
    """
    keys = (CHUNK, PARAMETERS, _NOVELAI, _DESCRIPTION, _GRAPH, *_EXIF, *_FOREIGN)
    texts = read_text(path, keys)
    try:
        found = _read(texts)
        if found is None:  # nothing was written, or a site took it away
            hidden = pixel_text(path)
            found = None if hidden is None else _from_text(PARAMETERS, hidden, "")
        if found is None:
            raise _nothing_said(texts)
    except ConfigError as error:
        raise ConfigError(f"from: {str(path)!r}: {str(error)[:400]}") from None
    return found


def _read(texts: Mapping[str, str | None]) -> Metadata | None:
    """Read the text that says most; None if none says how the picture was made."""
    for key in (CHUNK, PARAMETERS, _NOVELAI, _GRAPH, *_EXIF):
        if key not in texts:
            continue
        text = texts[key]
        if text is None:
            raise ConfigError(
                f"its text {key!r} has more than {MAX_TEXT_BYTES >> 20} MiB and is not read. Give "
                "the prompt and options instead."
            )
        if key == CHUNK:
            return _from_chunk(text)
        found = _from_text(key, text, texts.get(_DESCRIPTION) or "")
        if found is not None:
            return found
    return None


def _nothing_said(texts: Mapping[str, str | None]) -> ConfigError:
    for key, tool in _FOREIGN.items():
        if key in texts:
            return ConfigError(f"it was made by {tool}, whose text {key!r} is not read.")
    return ConfigError(
        f"it says nothing about how it was made; expected a PNG with a text chunk {CHUNK!r} or "
        f"{PARAMETERS!r}, the JSON of NovelAI or ComfyUI, EXIF with the text of a web UI, or such "
        "a text in its pixels."
    )


def _from_text(key: str, text: str, description: str) -> Metadata | None:
    """Read a text of another tool, JSON or the web UI's; None if it may be about anything else."""
    start = text.find("{") if key in _EXIF else 0  # behind a word such as "prompt:"
    content = _json_object(text[max(start, 0) :])
    if content is None:
        if key == PARAMETERS:
            return _from_parameters(text)
        is_other = key not in (COMMENT, "ImageDescription")
        found = None if is_other else parse_parameters(text)
        return _from_parameters(text) if found is not None and "steps" in found.fields else None
    if isinstance(content.get("Comment"), str):  # all of NovelAI's chunks as one JSON
        description = str(content.get("Description", ""))
        content = _json_object(content["Comment"]) or content
    if comfyui.is_graph(content):
        fields, left = comfyui.read_graph(content)
    elif novelai.is_comment(content):
        fields, left = novelai.read_comment(content, description)
    elif key == PARAMETERS or content.keys() & _FOREIGN.keys():
        named = [_FOREIGN[name] for name in content if name in _FOREIGN]
        tool = named[0] if named else f"a tool that writes {', '.join(map(ascii, content))[:80]}"
        raise ConfigError(f"its text {key!r} is the JSON of {tool}, which is not read.")
    else:
        return None
    return Metadata(fields, not_understood=tuple(left))


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


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
    names: dict[str, Any] = {name: _match(_NAME, content.get(name)) for name in _NAMES}
    provenance = Provenance(
        **names,
        threads=threads if type(threads) is int and 1 <= threads <= 4096 else None,
        model_hash=_match(_SHA256, model.get("sha256")),
        bundle_hash=_match(_SHA256, content.get("bundle")),
        vae_bands=read_bands(content.get("vae_bands")) or (),
    )
    fields = read_fields(request)
    used = tuple((one.name, one.sha256) for one in fields.get("embeddings") or ())
    return Metadata(fields, provenance, embeddings=used)


def _from_parameters(text: str) -> Metadata:
    found = parse_parameters(text)
    Request(**{name: value for name, value in found.fields.items() if name != WEB_UI_CLIP_SKIP})
    provenance = Provenance(model_hash=found.model_hash)
    return Metadata(found.fields, provenance, found.not_understood, found.embeddings, found.loras)


def _match(pattern: re.Pattern[str], value: object) -> str:
    """Return the text if it has that form, or none: it may end up in a terminal."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""
