"""Embedding library: those that an engine was given for whatever prompt names them."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sdengine.backends.forks import ForkSafeLock
from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import Skipped, read_embedding_folder, read_embeddings
from sdengine.inputs.embeddings import Embedding
from sdengine.prompt.embedding_names import encoder_vectors, name_collision, name_tokens
from sdengine.prompt.planner import PromptPlanner
from sdengine.request.request import Request

_MAX_NAMED = 20
_Key = tuple[tuple[int, ...], ...]  # a name's tokens by each tokenizer


class EmbeddingLibrary:
    """Hold the embeddings that a bundle's text encoders take, by name. Safe in several threads.

    Args:
        planner: of the bundle.
    """

    def __init__(self, planner: PromptPlanner) -> None:
        self._planner = planner
        self._adding = ForkSafeLock()
        self._held: tuple[tuple[Embedding, ...], tuple[Skipped, ...]] = ((), ())

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """Those that prompts may name, sorted by name."""
        return self._held[0]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Files of folders that are of no use for this bundle, with the reason."""
        return self._held[1]

    def add(self, *embeddings: str | os.PathLike[str] | Embedding) -> None:
        """Add embeddings, files, or all files of folders; what was there by the same name goes.

        Raises:
            ConfigError: a path leads to neither, or what is not of a folder is no embedding for
                this bundle or has the name of another one.
        """
        skipped: list[Skipped] = []
        found: dict[_Key, Embedding] = {}
        for value in embeddings:
            if isinstance(value, Embedding):
                self._take(value, found)
            elif os.path.isdir(value):
                skipped += self._take_folder(Path(value), found)
            else:
                for one in read_embeddings(value):
                    self._take(one, found)
        new = {one.file for one in found.values()} | {one.file for one in skipped}
        with self._adding:
            held = {self._key(one): one for one in self.embeddings} | found
            left = [one for one in self.skipped if one.file not in new]
            self._held = (
                tuple(sorted(held.values(), key=lambda one: one.name)),
                (*left, *skipped),
            )

    def resolve(
        self, embeddings: tuple[Embedding, ...] | None, also: Collection[Embedding] = ()
    ) -> tuple[Embedding, ...]:
        """Return the embeddings of a request, in place of records those that they are of.

        Args:
            embeddings: of the request; None means all that are held.
            also: held for this request alone; of one name, what was added counts.

        Raises:
            ConfigError: one is only a record, and its file is not held; or one of the others is
                not for this bundle.
        """
        held = self.embeddings
        if also:
            for one in also:
                encoder_vectors(self._planner.architecture, one)
            held = tuple({self._key(one): one for one in (*also, *held)}.values())
        if embeddings is None:
            return held
        return tuple(one if one.is_given else self._of_record(one, held) for one in embeddings)

    def _of_record(self, record: Embedding, held: Collection[Embedding]) -> Embedding:
        same = [one for one in held if one.sha256 == record.sha256]
        for one in same:
            if one.name == record.name or len(same) == 1:
                return Embedding(record.name, one.sha256, one.parts, one.file)
        raise ConfigError(
            f"embeddings: {record.name!r}, with SHA-256 {record.sha256}, is only known by its "
            "record. Give its file again: --embedding FILE in the command, embeddings in Python."
        )

    def _take_folder(self, folder: Path, found: dict[_Key, Embedding]) -> list[Skipped]:
        read, skipped = read_embedding_folder(folder)
        for one in read:
            try:
                self._take(one, found)
            except ConfigError as error:
                skipped.append(Skipped(one.name, one.file, str(error)))
        return skipped

    def _take(self, embedding: Embedding, found: dict[_Key, Embedding]) -> None:
        encoder_vectors(self._planner.architecture, embedding)
        known = found.setdefault(self._key(embedding), embedding)
        if known != embedding:
            raise name_collision(known, embedding)

    def _key(self, embedding: Embedding) -> _Key:
        tokenizers = self._planner.tokenizers.values()
        return tuple(name_tokens(tokenizer, embedding) for tokenizer in tokenizers)


def unused_embeddings(request: Request, used: Collection[Embedding]) -> tuple[str, ...]:
    """Say in sentences which embeddings a request brings that no prompt of it names."""
    unused = [one for one in request.embeddings or () if one not in used]
    return tuple(
        f"embeddings: {one.name!r} is named in no prompt that is read, so it has no effect. Write "
        "its name where it shall stand; beside a sign such as > or - leave a space."
        for one in unused[:_MAX_NAMED]
    )
