"""Embedding of textual inversion: vectors that stand where a prompt names them.

Source: "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual
Inversion" (Gal et al. 2022).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
# What fits into one chunk of a prompt, in which all vectors of an embedding must stand.
MAX_VECTORS = 75
MAX_NAME_CHARACTERS = 200
# Of a file for one text encoder; files for several, or for one that they name, have these keys.
ONLY = ""
ENCODER_KEYS = ("clip_l", "clip_g", "clip_h")


class Embedding:
    """Vectors with the name that a prompt calls them by; they do not change.

    Args:
        name: as prompts write it, in any case.
        sha256: of the file that they were read from.
        parts: [n,D] fp32 by text encoder: "clip_l", "clip_g", "clip_h", or "" where the file does
            not say which; None where only the record is known, with which nothing can be made.
        file: that they were read from, for people; perhaps empty.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        parts: Mapping[str, Vectors] | None = None,
        file: str = "",
    ) -> None:
        self.name = name
        self.sha256 = sha256
        self.file = file
        for vectors in (parts or {}).values():
            vectors.flags.writeable = False
        self._parts = None if parts is None else MappingProxyType(dict(parts))

    @property
    def is_given(self) -> bool:
        """Whether more is known than the record; a request cannot run before it is."""
        return self._parts is not None

    @property
    def parts(self) -> Mapping[str, Vectors]:
        """The vectors by text encoder; only of an embedding that is given."""
        assert self._parts is not None
        return self._parts

    @property
    def num_vectors(self) -> int:
        """How many places of a prompt it takes."""
        return len(next(iter(self.parts.values())))

    @functools.cached_property
    def content(self) -> str:
        """A hash of the vectors: of one file there may be several embeddings."""
        found = hashlib.sha256()
        for encoder, vectors in sorted(self.parts.items()):
            found.update(f"{encoder} {vectors.shape}".encode())
            found.update(vectors.tobytes())
        return found.hexdigest()

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it: its name and its file's hash."""
        return {"name": self.name, "sha256": self.sha256}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Embedding):
            return False
        if (self.name, self.sha256) != (other.name, other.sha256):
            return False
        is_record = not (self.is_given and other.is_given)
        return self is other or is_record or self.content == other.content

    def __hash__(self) -> int:
        return hash((self.name, self.sha256))

    def __repr__(self) -> str:
        return f"Embedding({self.name!r}, {self.sha256[:12]})"

    def __deepcopy__(self, memo: Any) -> Embedding:
        return self  # nothing of it changes

    def __reduce__(self) -> tuple[type[Embedding], tuple[Any, ...]]:
        parts = None if self._parts is None else dict(self._parts)
        return Embedding, (self.name, self.sha256, parts, self.file)


def name_fault(name: object) -> str:
    """Say why a prompt could not call an embedding by that name; "" where it can."""
    if not isinstance(name, str) or not name.strip():
        return "it is empty"
    if len(name) > MAX_NAME_CHARACTERS:
        return f"it has {len(name)} characters, at most {MAX_NAME_CHARACTERS} are accepted"
    if not name.isprintable():  # half a surrogate pair is none either
        return "it holds control characters or is no valid Unicode"
    return ""
