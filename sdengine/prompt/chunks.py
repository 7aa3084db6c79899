"""Chunks: weighted tokens split to the length that a text encoder reads, and padded.

Source: the long prompts, comma back-off and BREAK that the Stable Diffusion web UI documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# A comma at most so many tokens before a chunk's end takes what follows it to the next chunk.
COMMA_REACH = 20
# An id of the vocabulary, or several that stay together in one chunk: the vectors of an embedding.
# Those have the ids -1, -2, ... so that no vector can be taken for the end token.
Token = int | tuple[int, ...]


@dataclass
class Chunk:
    """Tokens of one text encoder run, without start, end and padding, and their weights."""

    token_ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.token_ids)

    def extend(self, token_ids: Sequence[int], weight: float) -> None:
        """Add tokens of one weight."""
        self.token_ids.extend(token_ids)
        self.weights.extend([weight] * len(token_ids))

    def take_from(self, start: int) -> Chunk:
        """Remove the tokens from a place on and return them."""
        taken = Chunk(self.token_ids[start:], self.weights[start:])
        del self.token_ids[start:], self.weights[start:]
        return taken


def split_chunks(
    sections: Sequence[Iterable[tuple[Token, float]]], room: int, comma_token_id: int | None
) -> list[Chunk]:
    """Fill chunks with tokens; every section begins a new one.

    Args:
        sections: (token, weight) pairs between BREAKs; a last empty section makes no chunk.
        room: tokens that fit into a chunk, as many as the longest token has ids or more.
        comma_token_id: of a comma that is a word by itself; None for no back-off.

    Returns:
        At least one chunk; empty ones stand for empty sections.
    """
    chunks: list[Chunk] = []
    for number, section in enumerate(sections, 1):
        filled = _fill(section, room, comma_token_id)
        if number < len(sections) or len(filled[0]) or not chunks:
            chunks += filled
    return chunks


def _fill(
    tokens: Iterable[tuple[Token, float]], room: int, comma_token_id: int | None
) -> list[Chunk]:
    chunks = [Chunk()]
    after_comma: int | None = None  # of the open chunk
    for token, weight in tokens:
        token_ids = (token,) if isinstance(token, int) else token
        is_comma = token == comma_token_id
        if len(chunks[-1]) == room:
            start = room
            if not is_comma and after_comma is not None and room - after_comma < COMMA_REACH:
                start = after_comma
            chunks.append(chunks[-1].take_from(start))
            after_comma = None
        elif is_comma:
            after_comma = len(chunks[-1]) + 1
        if len(chunks[-1]) + len(token_ids) > room:
            chunks.append(Chunk())
            after_comma = None
        chunks[-1].extend(token_ids, weight)
    return chunks


def pad_token_ids(
    chunks: Sequence[Chunk], length: int, start: int, end: int, padding: int
) -> NDArray[np.int64]:
    """Return [chunks,length] int64: start, a chunk's tokens, end, padding."""
    token_ids = np.full((len(chunks), length), padding, dtype=np.int64)
    token_ids[:, 0] = start
    for row, chunk in zip(token_ids, chunks, strict=True):
        row[1 : 1 + len(chunk)] = chunk.token_ids
        row[1 + len(chunk)] = end
    return token_ids


def pad_weights(chunks: Sequence[Chunk], length: int) -> NDArray[np.float32]:
    """Return [chunks,length] fp32: 1 but where a token has another weight."""
    weights = np.ones((len(chunks), length), dtype=np.float32)
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : 1 + len(chunk)] = chunk.weights
    return weights
