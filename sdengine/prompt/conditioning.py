"""Conditioning: what the U-Net reads of a prompt plan, by token tables, text encoders, emphasis."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import Module
from sdengine.bundle.architecture import HiddenState, TextEncoderArchitecture
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import (
    CHOSEN_STATES,
    LAYER,
    TensorSpec,
    numpy_dtype,
    require_tensors,
)
from sdengine.errors import BundleError, NonFiniteError
from sdengine.inputs.embedding_files import Skipped
from sdengine.inputs.embeddings import Embedding
from sdengine.prompt.plan import EncoderTokens, PromptOptions, PromptPlan
from sdengine.prompt.planner import PromptPlanner

# Every other number of rows would load the network again.
MAX_ROWS = 2
_HIDDEN_STATES = {"normed": "normed_hidden_states", "raw": "hidden_states"}
_Floats = NDArray[np.float32]
_LookUp = Callable[[NDArray[np.int64]], NDArray[Any]]  # rows of a token table


@dataclass(frozen=True)
class Conditioning:
    """The embeddings of prompts that the U-Net reads.

    Args:
        prompt_embeds: [N,77*chunks,D] fp32, one row a distinct text; D counts all text encoders.
        pooled: [N,P] fp32, or None when the U-Net reads none.
    """

    prompt_embeds: _Floats
    pooled: _Floats | None


class TextConditioner:
    """Hold a bundle's tokenizer and token tables.

    The tables are looked up here and not in the networks, so that embeddings learned for new words
    need no new network.

    Args:
        bundle: an open bundle.
        max_chunks: the most chunks of a prompt that its networks take; None for any number.

    Raises:
        BundleError: tokenizer, tables and manifest do not fit together.
    """

    def __init__(self, bundle: Bundle, max_chunks: int | None = None) -> None:
        self.planner = PromptPlanner.from_bundle(bundle, max_chunks)
        self.architecture = bundle.manifest.architecture
        self.token_tables: dict[str, NDArray[Any]] = {}
        for encoder in self.architecture.text_encoders:
            table = bundle.token_table(encoder)
            vocab_size = self.planner.tokenizers[encoder.network].vocab_size
            if len(table) < vocab_size:
                raise BundleError(
                    f"{bundle.root}: the token table of {encoder.network} has {len(table)} rows "
                    f"for a vocabulary of {vocab_size}."
                )
            self.token_tables[encoder.network] = table

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
        """Plan a request's prompts, as `PromptPlanner.plan` describes."""
        return self.planner.plan(
            prompts,
            negatives,
            steps,
            options,
            is_guided=is_guided,
            embeddings=embeddings,
            skipped=skipped,
        )

    def encode(
        self,
        plan: PromptPlan,
        get_encoder: Callable[[str, int], Module],
        weights: WeightSet = PRISTINE,
    ) -> Conditioning:
        """Run the text encoders over a plan's texts.

        Args:
            plan: of this conditioner.
            get_encoder: gives a text encoder by its network's name and its number of rows, 1 or 2:
                inputs `inputs_embeds` [rows,77,D] and `eos_index` [rows], outputs `hidden_states`
                and `normed_hidden_states` [L+1,rows,77,D], perhaps `pooled` [rows,P]; or with an
                input `layer` [rows], see `layer_number`, and `states` [rows,77,D] in their place.
            weights: whose token tables are looked up.

        Raises:
            BundleError: a text encoder is not what the manifest says.
            NonFiniteError: an output holds a NaN or an infinity.
        """
        embeds = []
        pooled = None
        for encoder in self.architecture.text_encoders:
            look_up = functools.partial(
                weights.token_rows, encoder.network, self.token_tables[encoder.network]
            )
            states, pooled_states = self._encode(encoder, plan, get_encoder, look_up)
            embeds.append(states)
            pooled = pooled_states if pooled_states is not None else pooled
        prompt_embeds = embeds[0] if len(embeds) == 1 else np.concatenate(embeds, axis=-1)
        if plan.zero_rows:
            zero_rows = list(plan.zero_rows)
            prompt_embeds[zero_rows] = 0
            if pooled is not None:
                pooled[zero_rows] = 0
        return Conditioning(prompt_embeds, pooled)

    def _encode(
        self,
        encoder: TextEncoderArchitecture,
        plan: PromptPlan,
        get_encoder: Callable[[str, int], Module],
        look_up: _LookUp,
    ) -> tuple[_Floats, _Floats | None]:
        """Return [N,77*chunks,D] of one text encoder, and [N,P] where its pooled output counts."""
        tokens = plan.encoders[encoder.network]
        num_texts, num_chunks, length = tokens.token_ids.shape
        distinct, places = tokens.distinct
        states, pooled = self._run(encoder, tokens, distinct, get_encoder, look_up)
        spread = states if len(states) == len(places) else states[places]
        weighted = spread.reshape(num_texts, num_chunks, length, -1)
        if tokens.is_weighted:
            weighted = apply_weights(weighted, tokens.weights, plan.emphasis)
        _require_finite(encoder.network, weighted)
        joined = weighted.reshape(num_texts, num_chunks * length, -1)
        if pooled is None:
            return joined, None
        _require_finite(encoder.network, pooled)
        return joined, pooled[places[::num_chunks]]  # of each text's first chunk

    def _run(
        self,
        encoder: TextEncoderArchitecture,
        tokens: EncoderTokens,
        token_ids: NDArray[np.int64],
        get_encoder: Callable[[str, int], Module],
        look_up: _LookUp,
    ) -> tuple[_Floats, _Floats | None]:
        """Return the hidden state [M,77,D] and pooled [M,P] of token_ids [M,77].

        Where a chunk has fewer tokens than the network reads, the rest is padding: no token sees
        what follows it, so that the chunk's own states are those of a shorter network.
        """
        count, length = token_ids.shape
        rows = min(count, MAX_ROWS)
        module = get_encoder(encoder.network, rows)
        choice = tokens.hidden_state
        chooses = any(spec.name == LAYER for spec in module.inputs)
        output = CHOSEN_STATES if chooses else _HIDDEN_STATES[choice.kind]
        is_pooled = encoder.network == self.architecture.pooled_from
        _check_module(encoder, module, rows, output, is_pooled)
        states, pooled = [], []
        for first in range(0, count, rows):
            group = token_ids[first : first + rows]
            if len(group) < rows:
                group = np.concatenate([group, group[:1].repeat(rows - len(group), axis=0)])
            if length < encoder.max_length:
                group = np.pad(group, ((0, 0), (0, encoder.max_length - length)), mode="edge")
            inputs = {
                "inputs_embeds": _embeds(look_up, group, tokens.vectors),
                "eos_index": np.array([row.index(encoder.eos_token_id) for row in group.tolist()]),
            }
            if chooses:
                inputs[LAYER] = np.full(rows, layer_number(encoder, choice))
            outputs = module.run(_in_dtypes(encoder.network, module.inputs, inputs))
            found = outputs[output] if chooses else outputs[output][choice.index]
            states.append(np.array(found[:, :length], dtype=np.float32))
            if is_pooled:
                pooled.append(np.array(outputs["pooled"], dtype=np.float32))
        all_pooled = np.concatenate(pooled)[:count] if is_pooled else None
        return (np.concatenate(states) if len(states) > 1 else states[0])[:count], all_pooled


def layer_number(encoder: TextEncoderArchitecture, choice: HiddenState) -> int:
    """Return what the input `layer` of a text encoder that hands over one layer is to be.

    0 to L are the hidden states as they are, L+1 to 2L+1 the normed ones.
    """
    count = encoder.num_layers + 1
    return choice.index % count + (count if choice.kind == "normed" else 0)


def apply_weights(states: _Floats, weights: _Floats, emphasis: str) -> _Floats:
    """Multiply hidden states by their tokens' weights.

    Args:
        states: [N,chunks,77,D] fp32.
        weights: [N,chunks,77] fp32.
        emphasis: "original" then scales each chunk so that its mean over tokens and D is what it
            was; a chunk whose mean has become zero is left as it is. Every other value does not.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for what is not finite
        weighted: _Floats = states * weights[..., None]
        if emphasis != "original":
            return weighted
        before = states.mean(axis=(2, 3), dtype=np.float64)
        after = weighted.mean(axis=(2, 3), dtype=np.float64)
        is_kept = (weights == 1).all(axis=2) | (after == 0)
        factor = np.where(is_kept, 1.0, before / np.where(is_kept, 1.0, after))
        return weighted * factor.astype(np.float32)[..., None, None]


def _embeds(
    look_up: _LookUp, token_ids: NDArray[np.int64], vectors: _Floats | None
) -> NDArray[Any]:
    """Return what stands for the tokens: rows of the table, and learned vectors as they are."""
    if vectors is None:
        return look_up(token_ids)
    embeds = look_up(token_ids.clip(0))
    is_learned = token_ids < 0
    embeds[is_learned] = vectors[-1 - token_ids[is_learned]]
    return embeds


def _check_module(
    encoder: TextEncoderArchitecture, module: Module, rows: int, output: str, is_pooled: bool
) -> None:
    network = encoder.network
    embeds_shape = (rows, encoder.max_length, encoder.hidden_size)
    wanted = {"inputs_embeds": embeds_shape, "eos_index": (rows,)}
    require_tensors(network, module.inputs, wanted)
    before = () if output == CHOSEN_STATES else (encoder.num_layers + 1,)
    require_tensors(network, module.outputs, {output: (*before, *embeds_shape)})
    shapes = [spec.shape for spec in module.outputs if spec.name == "pooled"]
    if is_pooled and not (shapes and len(shapes[0]) == 2 and shapes[0][0] == rows):
        found = f"is {list(shapes[0])}" if shapes else "is missing"
        raise BundleError(f"{network}: output 'pooled' {found}; expected [{rows}, width].")


def _require_finite(network: str, array: _Floats) -> None:
    if not _native.all_finite(array):
        raise NonFiniteError.at(network, "the output holds NaN or infinity")


def _in_dtypes(
    network: str, specs: Sequence[TensorSpec], available: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    missing = [spec.name for spec in specs if spec.name not in available]
    if missing:
        raise BundleError(f"{network}: inputs {', '.join(missing)} are unknown to this release.")
    return {
        spec.name: available[spec.name].astype(numpy_dtype(spec.dtype), copy=False)
        for spec in specs
    }
