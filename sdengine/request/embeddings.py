"""Embeddings of a request: files that its prompts may name, and their records in JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import read_embeddings
from sdengine.inputs.embeddings import Embedding, name_fault

MAX_EMBEDDINGS = 1000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Embeddings:
    """Some embeddings, each a path or an Embedding; a mapping gives them other names."""

    accepted: str = (
        f"a list of up to {MAX_EMBEDDINGS} paths of embeddings or sdengine.Embedding, or a dict of "
        "them by name"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> tuple[Embedding, ...]:
        """Return a tuple of embeddings with names that differ."""
        if isinstance(value, (str, os.PathLike, Embedding)):
            value = (value,)
        if not isinstance(value, (list, tuple, Mapping)) or len(value) > MAX_EMBEDDINGS:
            raise ConfigError.for_field(name, value, self.accepted)
        found: list[Embedding] = []
        if isinstance(value, Mapping):
            for called, one in value.items():
                if fault := name_fault(called):
                    raise ConfigError(f"{name}: the name {str(called)[:60]!r}: {fault}.")
                found += self._read(name, one, called)
        else:
            for one in value:
                found += self._read(name, one, "")
        return _without_collisions(name, found)

    def _read(self, name: str, value: Any, called: str) -> tuple[Embedding, ...]:
        if isinstance(value, Embedding):
            return (_renamed(value, called) if called else value,)
        if not isinstance(value, (str, os.PathLike)):
            raise ConfigError.for_field(name, value, self.accepted)
        if Path(value).is_dir():
            raise ConfigError.for_field(
                name,
                str(value),
                "files",
                "`sdengine.load(..., embeddings=FOLDER)` makes the files of a folder available.",
            )
        return read_embeddings(value, called)


def read_embedding_records(name: str, value: Any) -> tuple[Embedding, ...]:
    """Return what JSON from whomever says of embeddings; a path in it is never opened.

    Raises:
        ConfigError: it is no list of records.
    """
    accepted = f'a list of up to {MAX_EMBEDDINGS} objects {{"name": ..., "sha256": ...}}'
    if not isinstance(value, list) or len(value) > MAX_EMBEDDINGS:
        raise ConfigError.for_field(name, value, accepted)
    found = []
    for one in value:
        if not isinstance(one, Mapping) or set(one) != {"name", "sha256"}:
            raise ConfigError.for_field(name, one, accepted)
        sha256 = one["sha256"]
        is_hash = isinstance(sha256, str) and len(sha256) == 64 and _HEX.issuperset(sha256)
        if not is_hash or name_fault(one["name"]):
            raise ConfigError.for_field(name, one, accepted)
        found.append(Embedding(one["name"], sha256))
    return _without_collisions(name, found)


def _renamed(embedding: Embedding, name: str) -> Embedding:
    parts = embedding.parts if embedding.is_given else None
    return Embedding(name, embedding.sha256, parts, embedding.file)


def _without_collisions(field: str, found: list[Embedding]) -> tuple[Embedding, ...]:
    by_name: dict[str, Embedding] = {}
    for one in found:
        known = by_name.setdefault(one.name, one)
        if known != one:
            shown = " and ".join(repr(e.file or e.sha256) for e in (known, one))
            raise ConfigError(
                f"{field}: {shown} are both called {one.name!r}. Give one of them another name: a "
                "dict of paths by name, or NAME=FILE in the command."
            )
    return tuple(by_name.values())
