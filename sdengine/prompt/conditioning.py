"""From prompts to the U-Net's conditioning: tokens, embeddings, text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module, TensorSpec, numpy_dtype, require_tensors
from sdengine.bundle.manifest import HiddenState
from sdengine.bundle.reader import Bundle
from sdengine.errors import BundleError, NonFiniteError
from sdengine.prompt.tokenizer import ClipTokenizer

_HIDDEN_STATES = {"normed": "normed_hidden_states", "raw": "hidden_states"}


@dataclass(frozen=True)
class Conditioning:
    """What the U-Net reads about the prompts.

    Args:
        prompt_embeds: [N,77,D] fp32, one row a prompt.
        pooled: [N,P] fp32, or None when the text encoder gives none.
    """

    prompt_embeds: NDArray[np.float32]
    pooled: NDArray[np.float32] | None


class TextConditioner:
    """Hold a bundle's tokenizer and token table.

    The table is looked up here and not in the network, so that embeddings learned for new words
    need no new network.
    """

    def __init__(self, bundle: Bundle) -> None:
        from sdengine.bundle.manifest import MERGES_FILE, VOCAB_FILE

        text_encoder = bundle.manifest.architecture.text_encoder
        self.tokenizer = ClipTokenizer(
            bundle.path(VOCAB_FILE),
            bundle.path(MERGES_FILE),
            pad_token=text_encoder.pad_token,
            max_length=text_encoder.max_length,
        )
        self.token_table = bundle.token_table()
        self.hidden_state = text_encoder.hidden_state
        self.num_states = text_encoder.num_layers + 1
        stated = (text_encoder.bos_token_id, text_encoder.eos_token_id)
        found = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        if stated != found:
            raise BundleError(
                f"{bundle.root}: start and end token are {found} in the vocabulary, {stated} in "
                "the manifest."
            )
        if len(self.token_table) < self.tokenizer.vocab_size:
            raise BundleError(
                f"{bundle.root}: the token table has {len(self.token_table)} rows for a vocabulary "
                f"of {self.tokenizer.vocab_size}."
            )

    def token_ids(self, prompts: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
        """Tokenize prompts.

        Args:
            prompts: pairs of the field's name, for messages, and the prompt.

        Returns:
            [N,77] int64.

        Raises:
            ConfigError: a prompt has too many tokens.
        """
        return np.stack([self.tokenizer.token_ids(text, field) for field, text in prompts])

    def encode(self, token_ids: NDArray[np.int64], text_encoder: Module) -> Conditioning:
        """Run the text encoder, loaded for as many rows as there are prompts.

        Args:
            token_ids: [N,77] int64.
            text_encoder: inputs `inputs_embeds` [N,77,D] and `eos_index` [N].

        Raises:
            NonFiniteError: the output holds a NaN or an infinity.
        """
        rows, length = token_ids.shape
        hidden_size = self.token_table.shape[1]
        embeds_shape = (rows, length, hidden_size)
        wanted = {"inputs_embeds": embeds_shape, "eos_index": (rows,)}
        require_tensors("text_encoder", text_encoder.inputs, wanted)
        name = _HIDDEN_STATES[self.hidden_state.kind]
        wanted = {name: (self.num_states, *embeds_shape)}
        require_tensors("text_encoder", text_encoder.outputs, wanted)

        eos_index = [self.tokenizer.eos_index(row) for row in token_ids]
        available: dict[str, NDArray[Any]] = {
            "inputs_embeds": self.token_table[token_ids],
            "eos_index": np.array(eos_index),
        }
        outputs = text_encoder.run(_in_dtypes(text_encoder.inputs, available))
        return select_hidden_state(outputs, self.hidden_state)


def select_hidden_state(outputs: Any, choice: HiddenState) -> Conditioning:
    """Take the hidden state that conditions the U-Net.

    Args:
        outputs: `hidden_states` and `normed_hidden_states` [L+1,N,77,D], perhaps `pooled` [N,P].
        choice: which layer, and whether normed.
    """
    prompt_embeds = np.array(outputs[_HIDDEN_STATES[choice.kind]][choice.index], dtype=np.float32)
    pooled = outputs.get("pooled")
    if not np.isfinite(prompt_embeds).all():
        raise NonFiniteError(
            "text_encoder: the output holds NaN or infinity. Try precision fp32; if it stays, the "
            "checkpoint's text encoder is damaged."
        )
    return Conditioning(
        prompt_embeds, None if pooled is None else np.array(pooled, dtype=np.float32)
    )


def _in_dtypes(
    specs: Sequence[TensorSpec], available: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    missing = [spec.name for spec in specs if spec.name not in available]
    if missing:
        raise BundleError(f"text_encoder: inputs {', '.join(missing)} are unknown to this release.")
    return {
        spec.name: available[spec.name].astype(numpy_dtype(spec.dtype), copy=False)
        for spec in specs
    }
