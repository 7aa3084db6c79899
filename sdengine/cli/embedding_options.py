"""Embedding options: `--embedding`, `--embeddings`, and what a recorded image adds to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.images.metadata import Metadata
    from sdengine.images.result import Result
    from sdengine.inputs.embeddings import Embedding

EMBEDDING_HELP = (
    "a textual inversion that the prompts may name: by the file's name without its ending, or by "
    "NAME; repeatable"
)
EMBEDDING_METAVAR = "[NAME=]FILE"
FOLDER_HELP = "A folder of textual inversions that prompts may name."


def read_given(texts: Sequence[str]) -> tuple[Embedding, ...]:
    """Read the files that `--embedding` names.

    Raises:
        ConfigError: one cannot be read, or two have one name.
    """
    from sdengine.inputs.embedding_files import read_embeddings
    from sdengine.request.embeddings import Embeddings

    found: list[Embedding] = []
    for text in texts:
        name, is_there, path = text.partition("=")
        if os.path.exists(text) or not is_there:
            name, path = "", text
        elif not name or not path:
            raise ConfigError.for_field("--embedding", text, "FILE or NAME=FILE")
        found += read_embeddings(path, name)
    return Embeddings()("--embedding", found)


def recorded_embeddings(
    recorded: Metadata,
    has_new_text: bool,
    given: Sequence[Embedding],
    held: Sequence[Embedding],
) -> tuple[Embedding, ...] | None:
    """Return the embeddings of a request that makes a recorded image again.

    Those recorded, by the file that has the hash or else the name, and those given. None where the
    image records none, or where a prompt is new: what it names decides.

    Args:
        recorded: of the image.
        has_new_text: a prompt is given beside it.
        given: files that it was given.
        held: all that the engine has.
    """
    known = recorded.request_fields().get("embeddings")
    if known is None or has_new_text:
        return None
    hashes = {one.sha256 for one in held}
    names = {one.name: one for one in held}
    found = [one if one.sha256 in hashes else names.get(one.name, one) for one in known]
    taken = {one.name for one in found} | {one.sha256 for one in found}
    return (*found, *(one for one in given if not {one.name, one.sha256} & taken))


def embedding_warnings(
    recorded: Metadata | None, given: Sequence[Embedding], result: Result
) -> list[str]:
    """Say in sentences which embeddings were not used, and which a recorded image had else."""
    used = result.request.embeddings or ()
    known = recorded.embeddings if recorded is not None else ()
    # A recorded image's files are found by their hashes, whatever they are called now.
    found_again = {one.sha256 for one in used} & {sha256 for _, sha256 in known}
    lines = [
        f"embeddings: {one.name!r} is named in no prompt that is read, so it has no effect."
        for one in given
        if one.sha256 not in found_again
        and one not in used
        and not any(repr(one.name) in line for line in result.warnings)
    ]
    hashes = {one.name.lower(): one.sha256 for one in used}
    for name, sha256 in known:
        found = hashes.get(name.lower())
        if found is None:
            lines.append(
                f"the image was made with the embedding {name!r}, with SHA-256 {sha256}, which "
                "is not used here. Give its file with --embedding."
            )
        elif not found.startswith(sha256):
            lines.append(
                f"the image was made with another file of the embedding {name!r}, with SHA-256 "
                f"{sha256}."
            )
    return lines
