"""Prompt plan: the texts of a request to encode, and the steps at which each holds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.architecture import HiddenState
from sdengine.inputs.embeddings import Embedding
from sdengine.request.request import FIELDS

# (row of the negative or None, (row, weight) of every part joined by AND)
ImageRows = tuple[int | None, tuple[tuple[int, float], ...]]


@dataclass(frozen=True)
class PromptOptions:
    """Options of reading prompts.

    Args:
        emphasis: "original" multiplies a token's embedding by its weight and then brings the
            chunk's mean back to what it was; "no_norm" only multiplies; "none" reads the syntax
            but ignores weights; "literal" takes the whole syntax as text, AND, BREAK and edits too.
            Tags of other networks are no text under any of them.
        clip_skip: 1 is the hidden state that the checkpoint asks for, 2 the layer before it, and
            so on, with the final norm wherever the checkpoint applies it. A checkpoint of the
            first family asks for the last layer, so n is the n-th layer from the end there; one
            that asks for the last but one (XL) counts from that. None is 1.

    Raises:
        ConfigError: a value is not accepted.
    """

    emphasis: str = "original"
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        for name in ("emphasis", "clip_skip"):
            FIELDS[name].checked(getattr(self, name))


@dataclass(frozen=True)
class EncoderTokens:
    """The tokens that one text encoder reads, chunk by chunk, and the state that is taken from it.

    Args:
        token_ids: [N,chunks,length] int64 with start, end and padding; -1 - k is row k of vectors.
        weights: the same shape in fp32; 1 where no token has another weight.
        num_tokens: [N,chunks] int64, without start, end and padding.
        hidden_state: which one conditions the U-Net.
        vectors: [K,D] fp32 of the embeddings that the prompts name; None where they name none.
    """

    token_ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    num_tokens: NDArray[np.int64]
    hidden_state: HiddenState
    vectors: NDArray[np.float32] | None = None

    @cached_property
    def is_weighted(self) -> bool:
        """Whether a token has another weight than 1."""
        return bool((self.weights != 1).any())

    @cached_property
    def distinct(self) -> tuple[NDArray[np.int64], list[int]]:
        """The chunks that differ [M,length], and which one each of the N*chunks is.

        Often some are equal, those that fill up short texts above all: each runs once.
        """
        flat = self.token_ids.reshape(-1, self.token_ids.shape[-1])
        firsts: dict[bytes, int] = {}
        for index, row in enumerate(flat):
            firsts.setdefault(row.tobytes(), index)
        numbers = {row: number for number, row in enumerate(firsts)}
        return flat[list(firsts.values())], [numbers[row.tobytes()] for row in flat]


@dataclass(frozen=True)
class PromptPlan:
    """The distinct texts of a request, and where each one holds.

    Args:
        texts: N texts, one a row of the conditioning; edits are resolved, emphasis is not.
        encoders: what each text encoder reads, by the network's name.
        emphasis: as in `PromptOptions`.
        not_applied: tags of the prompts that ask for other networks, such as `<lora:name:0.8>`;
            they are in no text.
        zero_rows: rows whose conditioning is zero: empty negatives, where the checkpoint says so.
        steps: for each step the rows of every image.
        embeddings: what the texts name, in the order in which `EncoderTokens.vectors` has them.
        used: for each image those that its own texts name.
        skipped: embeddings that the texts name and that are of no use, in sentences.
    """

    texts: tuple[str, ...]
    encoders: Mapping[str, EncoderTokens]
    emphasis: str
    not_applied: tuple[str, ...]
    zero_rows: tuple[int, ...]
    steps: tuple[tuple[ImageRows, ...], ...]
    embeddings: tuple[Embedding, ...] = ()
    used: tuple[tuple[Embedding, ...], ...] = ()
    skipped: tuple[str, ...] = ()

    @cached_property
    def identity(self) -> Hashable:
        """All that the conditioning follows from: tokens, weights, layer and learned vectors."""
        encoders = (
            (
                name,
                tokens.token_ids.shape,
                tokens.token_ids.tobytes(),
                tokens.weights.tobytes(),
                (tokens.hidden_state.index, tokens.hidden_state.kind),
            )
            for name, tokens in self.encoders.items()
        )
        learned = tuple(one.content for one in self.embeddings)
        return (self.emphasis, self.zero_rows, learned, *encoders)

    @property
    def num_chunks(self) -> int:
        """Chunks of every row; shorter texts are filled up with empty chunks."""
        return len(next(iter(self.encoders.values())).num_tokens[0])

    def rows(self, step: int) -> tuple[ImageRows, ...]:
        """Return for each image the row of its negative, and row and weight of its parts.

        Args:
            step: 0 to steps - 1.
        """
        return self.steps[step]
