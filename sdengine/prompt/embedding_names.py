"""Embedding names in a prompt: found by their tokens, and whether a bundle's encoders take them.

Source: the Stable Diffusion web UI documents that a name is looked for as a sequence of tokens, the
longest first, so that case and spaces do not count and a name inside a word is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sdengine.bundle.architecture import Architecture
from sdengine.errors import ConfigError
from sdengine.inputs.embedding_files import Skipped
from sdengine.inputs.embeddings import ONLY, Embedding, Vectors
from sdengine.prompt.tokenizer import ClipTokenizer

_MADE_FOR = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "SDXL's second encoder"}
_SECOND = "text_encoder_2"


class EmbeddingNames:
    """Names of embeddings as one tokenizer reads them.

    Args:
        tokenizer: of the prompts.
        embeddings: that prompts may name, and those of which only the name is known.

    Raises:
        ConfigError: two have the same tokens, or one has none that a prompt could hold.
    """

    def __init__(
        self, tokenizer: ClipTokenizer, embeddings: Sequence[Embedding | Skipped] = ()
    ) -> None:
        found: dict[tuple[int, ...], Embedding | Skipped] = {}
        for one in embeddings:
            if isinstance(one, Embedding):
                known = found.setdefault(name_tokens(tokenizer, one), one)
                if isinstance(known, Embedding) and known != one:
                    raise name_collision(known, one)
        for one in embeddings:
            if isinstance(one, Skipped) and (ids := _tokens(tokenizer, one.name)):
                found.setdefault(ids, one)  # where no other has that name
        self._named = found
        # By the first token, the lengths of names, the longest first: thousands may begin alike.
        lengths: dict[int, set[int]] = {}
        for ids in found:
            lengths.setdefault(ids[0], set()).add(len(ids))
        self._lengths = {first: sorted(some, reverse=True) for first, some in lengths.items()}

    def find(
        self, token_ids: Sequence[int]
    ) -> Iterator[tuple[tuple[int, ...], Embedding | Skipped | None]]:
        """Divide the tokens of a text.

        Args:
            token_ids: of a stretch of text under one weight.

        Yields:
            A token that belongs to no name, and None; or the tokens of one, and what it names.
        """
        place = 0
        while place < len(token_ids):
            first = token_ids[place]
            for length in self._lengths.get(first, ()):
                ids = tuple(token_ids[place : place + length])
                if len(ids) == length and ids in self._named:
                    yield ids, self._named[ids]
                    place += length
                    break
            else:
                yield (first,), None
                place += 1


def name_tokens(tokenizer: ClipTokenizer, embedding: Embedding) -> tuple[int, ...]:
    """Return the tokens of an embedding's name.

    Raises:
        ConfigError: it has none that a prompt could hold.
    """
    ids = _tokens(tokenizer, embedding.name)
    if not ids:
        raise ConfigError(
            f"embeddings: {embedding.name!r}: no prompt can hold that name. Give another one."
        )
    return ids


def name_collision(first: Embedding, second: Embedding) -> ConfigError:
    """Return the error of two names that are one to the tokenizer."""
    shown = " and ".join(f"{e.name!r} ({e.file or e.sha256[:12]})" for e in (first, second))
    return ConfigError(
        f"embeddings: {shown} are the same name to the tokenizer, which knows no capital letters. "
        "Give one of them another name."
    )


def _tokens(tokenizer: ClipTokenizer, name: str) -> tuple[int, ...]:
    """Return a name's tokens; none where it has one with a meaning of its own, such as the end."""
    ids = tokenizer.encode(name)
    own = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return () if own & set(ids) else tuple(ids)


def encoder_vectors(architecture: Architecture, embedding: Embedding) -> Mapping[str, Vectors]:
    """Return which vectors each text encoder takes, [n,D] by network.

    Raises:
        ConfigError: the embedding was made for other text encoders, or has more vectors than fit
            into a chunk.
    """
    parts, encoders = embedding.parts, architecture.text_encoders
    source = f" of {embedding.file!r}" if embedding.file else ""
    told = f"embeddings: {embedding.name!r}{source}"
    room = encoders[0].chunk_length - 2
    if embedding.num_vectors > room:
        raise ConfigError(
            f"{told} has {embedding.num_vectors} vectors; {room} fit into a chunk of a prompt."
        )
    found: dict[str, Vectors] = {}
    for encoder, keys in zip(encoders, _keys(architecture, parts), strict=True):
        key = next((key for key in keys if key in parts), None)
        if key is None or parts[key].shape[1] != encoder.hidden_size:
            wanted = " and ".join(f"[n,{one.hidden_size}] for {one.network}" for one in encoders)
            raise ConfigError(
                f"{told} has {_shown(parts)}; this bundle's text encoders read {wanted}."
                f"{_made_for(parts)} Give one that was trained for this model."
            )
        found[encoder.network] = parts[key]
    return found


def _keys(architecture: Architecture, parts: Mapping[str, Vectors]) -> list[tuple[str, ...]]:
    """Return for each text encoder the keys of files under which its vectors may lie."""
    names = [encoder.network for encoder in architecture.text_encoders]
    if len(names) == 2:
        return [("clip_l",), ("clip_g",)]
    if names == [_SECOND]:  # the refiner's, of whose model the file may be
        return [("clip_g", ONLY)]
    return [(ONLY, "clip_l", "clip_h") if len(parts) == 1 else ()]


def _shown(parts: Mapping[str, Vectors]) -> str:
    return " and ".join(f"{key or 'vectors'} {list(v.shape)}" for key, v in parts.items())


def _made_for(parts: Mapping[str, Vectors]) -> str:
    if len(parts) > 1:
        return " It was made for SDXL."
    width = next(iter(parts.values())).shape[1]
    return f" It was made for {_MADE_FOR[width]}." if width in _MADE_FOR else ""
