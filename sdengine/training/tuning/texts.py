"""Texts: what the U-Net reads of captions, in the way in which requests are conditioned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdengine.building.architecture import tokenizer_of
from sdengine.bundle.architecture import TextEncoderArchitecture
from sdengine.errors import ConfigError
from sdengine.inputs.embeddings import Embedding
from sdengine.prompt.chunks import Chunk, Token, pad_token_ids, split_chunks
from sdengine.prompt.embedding_names import EmbeddingNames
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.tuning.dataset import NOTHING
from sdengine.training.tuning.networks import Networks

_MOST_CACHED_BYTES = 256 << 20


@dataclass(frozen=True)
class Text:
    """What the U-Net reads of B captions.

    Args:
        context: [B,77*chunks,D].
        pooled: [B,P] of SDXL, or None.
    """

    context: Tensor
    pooled: Tensor | None


class TextEncoding:
    """Encode captions by a checkpoint's text encoders.

    Captions of more than 75 tokens fill further chunks, as prompts do. An empty one is zeros where
    the model has empty negative prompts so, since that is what it stands for.

    Args:
        networks: of the checkpoint.
        is_trained: gradients are wanted, and nothing is kept from one step to the next.
        embedding: that captions may name; its vectors are given to `encode`.
    """

    def __init__(
        self, networks: Networks, *, is_trained: bool = False, embedding: Embedding | None = None
    ) -> None:
        self._networks, self._is_trained, self._embedding = networks, is_trained, embedding
        checkpoint = networks.checkpoint
        self.tokenizers = {
            part: tokenizer_of(checkpoint, part) for part in checkpoint.text_encoder_configs
        }
        named = [] if embedding is None else [embedding]
        self._names = {p: EmbeddingNames(t, named) for p, t in self.tokenizers.items()}
        self._known: OrderedDict[tuple[str, int], Text] = OrderedDict()

    def tokens(self, part: str, text: str) -> list[int]:
        """Return the ids of a text, without start, end and padding."""
        return self.tokenizers[part].encode(text)

    def check(self, captions: Sequence[str]) -> None:
        """Refuse captions that do not name the embedding, which would teach it nothing.

        Raises:
            ConfigError: one does not; the message shows it.
        """
        assert self._embedding is not None
        (tokenizer, names), *_ = zip(self.tokenizers.values(), self._names.values(), strict=True)
        for caption in captions:
            found = [named for _, named in names.find(tokenizer.encode(caption))]
            if caption and not any(isinstance(one, Embedding) for one in found):
                raise ConfigError.for_field(
                    "template", caption, f"captions that name {self._embedding.name!r}"
                )

    def encode(self, captions: Sequence[str], vectors: Mapping[str, Tensor] | None = None) -> Text:
        """Return what the U-Net reads of captions.

        Args:
            captions: B texts.
            vectors: [n,D] of the embedding by text encoder.
        """
        chunks = {p: [self._chunks(p, text) for text in captions] for p in self.tokenizers}
        count = max(len(own) for some in chunks.values() for own in some)
        if self._is_trained or vectors is not None:
            return self._join([self._one(i, t, chunks, count, vectors) for i, t in
                               enumerate(captions)])  # fmt: skip
        found = []
        with torch.no_grad():
            for i, text in enumerate(captions):
                key = text, count
                if key not in self._known:
                    self._known[key] = self._one(i, text, chunks, count, None)
                    self._forget()
                self._known.move_to_end(key)
                found.append(self._known[key])
        return self._join(found)

    def _forget(self) -> None:
        each = next(iter(self._known.values())).context.nbytes
        while len(self._known) > max(64, _MOST_CACHED_BYTES // each):
            self._known.popitem(last=False)

    def _join(self, texts: Sequence[Text]) -> Text:
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Text(
            torch.cat([text.context for text in texts]), torch.cat(pooled) if pooled else None
        )

    def _one(
        self,
        index: int,
        text: str,
        chunks: Mapping[str, Sequence[Sequence[Chunk]]],
        count: int,
        vectors: Mapping[str, Tensor] | None,
    ) -> Text:
        """Encode one caption by itself, so that a batch changes nothing of it."""
        architecture = self._networks.architecture
        parts, pooled = [], None
        for encoder in architecture.text_encoders:
            part = encoder.network
            padded = [*chunks[part][index], *[Chunk()] * (count - len(chunks[part][index]))]
            own = None if vectors is None else vectors[part]
            states, end = self._states(encoder, padded, own)
            parts.append(states.flatten(0, 1)[None])
            pooled = end[:1] if part == architecture.pooled_from else pooled
        context = torch.cat(parts, dim=-1)
        if text == NOTHING and architecture.zero_empty_negative:
            context = torch.zeros_like(context)
            pooled = None if pooled is None else torch.zeros_like(pooled)
        return Text(context, pooled)

    def _states(
        self, encoder: TextEncoderArchitecture, chunks: Sequence[Chunk], vectors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden state [chunks,77,D] that is read, and pooled [chunks,P]."""
        tokenizer, module = self.tokenizers[encoder.network], self._networks.text_encoders
        special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        ids = pad_token_ids(chunks, encoder.chunk_length, *special)
        device = self._networks.device
        end = torch.from_numpy(np.argmax(ids == tokenizer.eos_token_id, axis=1)).to(device)
        rows = torch.from_numpy(ids).to(device)
        with self._networks.autocast():
            embeds = module[encoder.network].embed(rows.clamp(min=0))
            if vectors is not None:  # ids below zero stand for them
                learned = vectors[(-1 - rows).clamp(min=0)].to(embeds.dtype)
                embeds = torch.where((rows < 0)[..., None], learned, embeds)
            hidden, normed, pooled = module[encoder.network](embeds, end)
        state = encoder.hidden_state
        return (normed if state.kind == "normed" else hidden)[state.index], pooled

    def _chunks(self, part: str, text: str) -> list[Chunk]:
        tokenizer = self.tokenizers[part]
        architecture = next(
            e for e in self._networks.architecture.text_encoders if e.network == part
        )
        tokens = [(token, 1.0) for token in self._placed(part, tokenizer, text)]
        return split_chunks([tokens], architecture.chunk_length - 2, tokenizer.comma_token_id)

    def _placed(self, part: str, tokenizer: ClipTokenizer, text: str) -> list[Token]:
        """Return a text's tokens, with the embedding's places for its name."""
        found: list[Token] = []
        for ids, named in self._names[part].find(tokenizer.encode(text)):
            if isinstance(named, Embedding):
                found.append(tuple(range(-1, -1 - named.num_vectors, -1)))
            else:
                found += ids
        return found
