"""Prompt planner: parse, tokenize and split a request's prompts before any network runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdengine.bundle.architecture import Architecture, HiddenState, TextEncoderArchitecture
from sdengine.bundle.manifest import ADDED_TOKENS_FILE, MERGES_FILE, VOCAB_FILE
from sdengine.bundle.reader import Bundle
from sdengine.errors import BundleError, ConfigError
from sdengine.inputs.embedding_files import Skipped
from sdengine.inputs.embeddings import Embedding
from sdengine.prompt.chunks import Chunk, Token, pad_token_ids, pad_weights, split_chunks
from sdengine.prompt.editing import EditedText, Part, split_parts
from sdengine.prompt.embedding_names import EmbeddingNames, encoder_vectors
from sdengine.prompt.emphasis import Run, parse_emphasis, parse_unweighted
from sdengine.prompt.network_tags import split_tags
from sdengine.prompt.plan import EncoderTokens, PromptOptions, PromptPlan
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.request.fields import PROMPT

MAX_CHUNKS = 40  # of a prompt, whatever the networks take
MAX_TOTAL_CHUNKS = 2048

_NEGATIVE = "negative_prompt"
_Parts = tuple[tuple[int, float], ...]
_Names = Mapping[ClipTokenizer, EmbeddingNames]


class PromptPlanner:
    """Hold a tokenizer as each text encoder of a bundle uses it.

    Args:
        architecture: of the bundle.
        vocab_file, merges_file: of the tokenizer.
        max_chunks: the most chunks of a prompt that the networks take; None for any number.
        added_file: of the tokenizer too; None where the vocabulary is all of it.

    Raises:
        BundleError: the files are not a tokenizer, or not the architecture's.
    """

    def __init__(
        self,
        architecture: Architecture,
        vocab_file: Path,
        merges_file: Path,
        max_chunks: int | None = None,
        added_file: Path | None = None,
    ) -> None:
        self.architecture = architecture
        self.max_chunks = min(MAX_CHUNKS, max_chunks or MAX_CHUNKS)
        encoders = architecture.text_encoders
        by_padding = {
            padding: ClipTokenizer(vocab_file, merges_file, padding, added_file)
            for padding in {encoder.pad_token for encoder in encoders}
        }
        self.tokenizers: dict[str, ClipTokenizer] = {
            encoder.network: by_padding[encoder.pad_token] for encoder in encoders
        }
        for encoder in encoders:
            tokenizer = self.tokenizers[encoder.network]
            stated = (encoder.bos_token_id, encoder.eos_token_id)
            found = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            if stated != found:
                raise BundleError(
                    f"{vocab_file}: start and end token are {found} in the vocabulary, {stated} "
                    "in the manifest."
                )
        # Thousands of names take longer to tokenize than a prompt.
        self._names = functools.lru_cache(maxsize=4)(self._names_of)

    @classmethod
    def from_bundle(cls, bundle: Bundle, max_chunks: int | None = None) -> PromptPlanner:
        """Read a bundle's tokenizer; raises BundleError as the constructor does."""
        files = bundle.path(VOCAB_FILE), bundle.path(MERGES_FILE)
        has_added = any(entry.path == ADDED_TOKENS_FILE for entry in bundle.manifest.files)
        added = bundle.path(ADDED_TOKENS_FILE) if has_added else None
        return cls(bundle.manifest.architecture, *files, max_chunks, added)

    def plan(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        steps: int,
        options: PromptOptions,
        *,
        is_guided: bool = True,
        embeddings: tuple[Embedding, ...] = (),
        skipped: tuple[Skipped, ...] = (),
    ) -> PromptPlan:
        """Plan the prompts of a request.

        Args:
            prompts: one an image.
            negatives: one an image, or none. AND is text in them, because an image has one
                negative.
            steps: sampler steps, at least 1.
            options: how to read the prompts.
            is_guided: the U-Net computes the unconditional half; without it negatives are left out
                unless AND joins parts, which only has a meaning relative to a negative.
            embeddings: that the prompts may name.
            skipped: embeddings of no use; a prompt that names one is told so.

        Raises:
            ConfigError: a prompt has too many tokens, edits or parts, or a weight out of range;
                the text encoder has too few layers for clip_skip; an embedding is not for this
                bundle, or two have one name.
        """
        states = {
            encoder.network: skip_layers(encoder, options.clip_skip)
            for encoder in self.architecture.text_encoders
        }
        if len(negatives) not in (0, len(prompts)):
            raise ConfigError(f"{_NEGATIVE}: {len(negatives)} texts for {len(prompts)} prompts.")
        rows = _Rows(self, options.emphasis, self._names(embeddings, skipped))
        positive = _schedules(rows, "prompt", prompts, steps)
        is_composed = any(len(parts[0]) > 1 for parts in positive)
        negative = _schedules(rows, _NEGATIVE, negatives if is_guided or is_composed else (), steps)
        return PromptPlan(
            texts=tuple(text for text, _ in rows.numbers),
            encoders={name: rows.tokens(name, state) for name, state in states.items()},
            emphasis=options.emphasis,
            not_applied=tuple(rows.tags),
            zero_rows=tuple(row for (_, is_zero), row in rows.numbers.items() if is_zero),
            steps=tuple(
                tuple(
                    (negative[image][step][0][0] if negative else None, parts[step])
                    for image, parts in enumerate(positive)
                )
                for step in range(steps)
            ),
            embeddings=tuple(rows.placed),
            used=tuple(
                rows.named_in(*own) for own in zip(positive, negative or positive, strict=True)
            ),
            skipped=tuple(rows.skipped),
        )

    def _names_of(
        self, embeddings: tuple[Embedding, ...], skipped: tuple[Skipped, ...]
    ) -> _Names | None:
        """Return the names that each tokenizer looks for."""
        for embedding in embeddings:
            encoder_vectors(self.architecture, embedding)
        names: list[Embedding | Skipped] = [*embeddings, *skipped]
        if not names:
            return None
        return {one: EmbeddingNames(one, names) for one in set(self.tokenizers.values())}


def skip_layers(encoder: TextEncoderArchitecture, clip_skip: int | None) -> HiddenState:
    """Return the hidden state that clip_skip names, counted from the checkpoint's own choice.

    Raises:
        ConfigError: it would lie before the first layer's output.
    """
    own = encoder.hidden_state
    if clip_skip in (None, 1):
        return own
    from_end = -_from_end(encoder)
    most = max(1, encoder.num_layers + from_end + 1)
    if clip_skip > most:
        accepted = f"1 to {most} for {encoder.network} of {encoder.num_layers} layers"
        raise ConfigError.for_field("clip_skip", clip_skip, accepted)
    return HiddenState(index=from_end - (clip_skip - 1), kind=own.kind)


def usual_clip_skip(architecture: Architecture) -> int:
    """Return what the web UI calls the layer that a checkpoint reads.

    It counts layers of the text encoder from the last one, so that 1 is what the first family
    reads, and 2, the last but one, is what XL does: asking XL for 1 changes nothing. The encoder of
    the second family is published without its last layer.
    """
    if architecture.family == "sd2":
        return 2
    return max(_from_end(encoder) for encoder in architecture.text_encoders)


def _from_end(encoder: TextEncoderArchitecture) -> int:
    index = encoder.hidden_state.index
    return -index if index < 0 else encoder.num_layers + 1 - index


class _Rows:
    """Number the distinct texts in the order in which they are met, and tokenize each once."""

    def __init__(self, planner: PromptPlanner, emphasis: str, names: _Names | None) -> None:
        self._planner = planner
        self._names = names
        self.emphasis = emphasis
        # Embedding -> the ids that stand for its vectors, in the order in which they are met.
        self.placed: dict[Embedding, tuple[int, ...]] = {}
        self.skipped: dict[str, None] = {}
        self._named: list[dict[Embedding, None]] = []  # by row
        self._chunks: dict[str, list[list[Chunk]]] = {name: [] for name in planner.tokenizers}
        self._num_chunks = 1
        # (text, whether its conditioning is zero) -> row
        self.numbers: dict[tuple[str, bool], int] = {}
        self.tags: dict[str, None] = {}  # in the order in which they are met

    def without_tags(self, text: str) -> str:
        """Return a prompt as it is read, and remember what it asks for beside the text."""
        plain, tags = split_tags(text)
        self.tags |= dict.fromkeys(tags)
        return plain

    def number(self, field: str, text: str) -> int:
        """Return the row of a text whose edits are resolved."""
        zero_empty = self._planner.architecture.zero_empty_negative
        key = (text, zero_empty and not text and field.startswith(_NEGATIVE))
        if key not in self.numbers:
            self._add(field, text)
            self.numbers[key] = len(self.numbers)
        return self.numbers[key]

    def _add(self, field: str, text: str) -> None:
        sections = self._sections(field, text)
        self._named.append({})
        by_tokenizer: dict[int, list[Chunk]] = {}
        for name, tokenizer in self._planner.tokenizers.items():
            if id(tokenizer) not in by_tokenizer:
                by_tokenizer[id(tokenizer)] = self._split(field, sections, tokenizer)
            chunks = by_tokenizer[id(tokenizer)]
            self._chunks[name].append(chunks)
            self._num_chunks = max(self._num_chunks, len(chunks))
        total = self._num_chunks * (len(self.numbers) + 1)
        if total > MAX_TOTAL_CHUNKS:
            raise ConfigError(
                f"{field}: {len(self.numbers) + 1} different texts of {self._num_chunks} chunks in "
                f"one request; at most {MAX_TOTAL_CHUNKS} chunks are accepted. Use fewer images, "
                "shorter prompts, or edits that hold for more steps."
            )

    def _sections(self, field: str, text: str) -> list[list[Run]]:
        if self.emphasis == "literal":
            return [[Run(text, 1.0)]]
        if self.emphasis == "none":
            return parse_unweighted(text)
        return parse_emphasis(text, field)

    def _split(
        self, field: str, sections: list[list[Run]], tokenizer: ClipTokenizer
    ) -> list[Chunk]:
        tokens = [
            [(token, run.weight) for run in section for token in self._read(run.text, tokenizer)]
            for section in sections
        ]
        room = self._planner.architecture.text_encoders[0].chunk_length - 2
        chunks = split_chunks(tokens, room, tokenizer.comma_token_id)
        most = self._planner.max_chunks
        if len(chunks) > most:
            count = sum(len(chunk) for chunk in chunks)
            where, hint = "", ""
            if most < MAX_CHUNKS:
                where = " by this bundle's engines"
                hint = f", or use a bundle of target native, which takes {MAX_CHUNKS} chunks"
            raise ConfigError(
                f"{field}: {count} tokens fill {len(chunks)} chunks of {room}; at most {most} "
                f"chunks, {most * room} tokens, are accepted{where}. Shorten the text{hint}."
            )
        return chunks

    def _read(self, text: str, tokenizer: ClipTokenizer) -> Iterator[Token]:
        """Yield the tokens of a text, with embeddings in the place of their names."""
        token_ids = tokenizer.encode(text)
        if self._names is None:
            yield from token_ids
            return
        for ids, named in self._names[tokenizer].find(token_ids):
            if isinstance(named, Embedding):
                self._named[-1][named] = None
                yield self._place(named)
            else:
                if named is not None:
                    shown = f"{named.name[:60]!r} is read as text, because its embedding is of no"
                    self.skipped[f"prompt: {shown} use here: {named.reason}"] = None
                yield from ids

    def _place(self, embedding: Embedding) -> tuple[int, ...]:
        """Return the ids of an embedding's vectors: those below zero are free."""
        if embedding not in self.placed:
            first = -1 - sum(map(len, self.placed.values()))
            self.placed[embedding] = tuple(range(first, first - embedding.num_vectors, -1))
        return self.placed[embedding]

    def named_in(self, *schedules: Sequence[_Parts]) -> tuple[Embedding, ...]:
        """Return the embeddings that the texts of some schedules name."""
        if not self.placed:
            return ()
        numbers = {row for schedule in schedules for parts in set(schedule) for row, _ in parts}
        named = {one for row in numbers for one in self._named[row]}
        return tuple(one for one in self.placed if one in named)

    def tokens(self, network: str, hidden_state: HiddenState) -> EncoderTokens:
        """Return all rows as one text encoder reads them, filled up to equally many chunks."""
        tokenizer = self._planner.tokenizers[network]
        length = self._planner.architecture.text_encoders[0].chunk_length
        rows = self._chunks[network]
        flat = [
            chunk
            for chunks in rows
            for chunk in [*chunks, *[Chunk()] * (self._num_chunks - len(chunks))]
        ]
        architecture = self._planner.architecture
        vectors = [encoder_vectors(architecture, one)[network] for one in self.placed]
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        shape = (len(rows), self._num_chunks)
        return EncoderTokens(
            token_ids=pad_token_ids(flat, length, *special).reshape(*shape, length),
            weights=pad_weights(flat, length).reshape(*shape, length),
            num_tokens=np.array([len(chunk) for chunk in flat], dtype=np.int64).reshape(shape),
            hidden_state=hidden_state,
            vectors=np.concatenate(vectors) if vectors else None,
        )


def _schedules(rows: _Rows, name: str, texts: Sequence[str], steps: int) -> list[list[_Parts]]:
    """Return for each image and step the row and weight of each part."""
    made: dict[str, list[_Parts]] = {}
    for index, text in enumerate(texts):
        if text not in made:
            field = f"{name}[{index}]" if len(texts) > 1 else name
            PROMPT(field, text)
            made[text] = _schedule(rows, field, rows.without_tags(text), steps)
    return [made[text] for text in texts]


def _schedule(rows: _Rows, field: str, text: str, steps: int) -> list[_Parts]:
    if rows.emphasis == "literal":
        return [((rows.number(field, text), 1.0),)] * steps
    is_negative = field.startswith(_NEGATIVE)
    parts = [Part(text, 1.0)] if is_negative else split_parts(text, field)
    edited = [(EditedText(part.text, steps, field), part.weight) for part in parts]
    num_different = 1 if all(text.is_constant for text, _ in edited) else steps
    by_step = [
        tuple((rows.number(field, text.at(step)), weight) for text, weight in edited)
        for step in range(num_different)
    ]
    return by_step * (steps // num_different)
