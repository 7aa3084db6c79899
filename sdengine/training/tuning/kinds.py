"""Kinds of tuning: what each of them trains, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdengine.checkpoints import save_network
from sdengine.errors import ConfigError
from sdengine.inputs.embeddings import Embedding
from sdengine.models.controlnet import ControlNetModel
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.training.tuning.control import ControlTask, controlnet_of, hint_widths
from sdengine.training.tuning.files import (
    save_embedding,
    save_hypernetwork,
    save_lora,
    save_whole,
)
from sdengine.training.tuning.hypernetwork import Hypernetworks
from sdengine.training.tuning.lora import Lora
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.options import (
    ControlOptions,
    DreamBoothOptions,
    EmbeddingOptions,
    HypernetworkOptions,
    LoraOptions,
    TuningOptions,
    WholeOptions,
)
from sdengine.training.tuning.task import TuningTask
from sdengine.training.tuning.texts import TextEncoding
from sdengine.training.tuning.whole import DreamBoothTask, trainable

CONTROL = "trained"  # what the ControlNet is called in the bundle of sample sheets


@dataclass(frozen=True)
class Prepared:
    """What is trained on a checkpoint's networks.

    Args:
        model: the trained parameters.
        texts: encodes captions.
        save: writes the trained model to a place, given the steps and further metadata.
        task: class of the task.
        embedding: returns what requests of sample sheets name, where there is such a thing.
    """

    model: nn.Module
    texts: TextEncoding
    save: Callable[[Path, int, Mapping[str, str]], None]
    task: type[TuningTask] = TuningTask
    embedding: Callable[[], Embedding] | None = field(default=None)


def prepare_embedding(networks: Networks, options: TuningOptions, output: Path) -> Prepared:
    """Prepare vectors that begin as the tokens of a text.

    Only the vectors are trained: the token table takes no part, so that its other rows stay.
    """
    assert isinstance(options, EmbeddingOptions)
    name = options.name or output.stem
    plain = TextEncoding(networks)
    vectors = nn.ParameterDict()
    for part, encoder in networks.text_encoders.items():
        ids = plain.tokens(part, options.initial)
        if not ids:
            raise ConfigError.for_field("initial", options.initial, "text with at least one token")
        table = encoder.text_model.embeddings.token_embedding.weight.detach()
        vectors[part] = nn.Parameter(_start(table, ids, options.vectors))
    keys = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"} if len(vectors) > 1 else {}

    def embedding() -> Embedding:
        parts = {
            keys.get(part, ""): np.array(tensor.detach().float().cpu().numpy())
            for part, tensor in vectors.items()
        }
        return Embedding(name, "0" * 64, parts)

    def save(place: Path, steps: int, about: Mapping[str, str]) -> None:
        save_embedding(place, dict(vectors.items()), name, steps, networks.checkpoint)

    texts = TextEncoding(networks, is_trained=True, embedding=embedding())
    return Prepared(vectors, texts, save, EmbeddingTask, embedding)


def _start(table: Tensor, ids: Sequence[int], count: int) -> Tensor:
    """Return the vectors [count,D] that tokens give: each the mean of its share of them.

    Fewer tokens than vectors are repeated.
    """
    if len(ids) < count:
        ids = [ids[i % len(ids)] for i in range(count)]
    shares = [torch.as_tensor(share, device=table.device) for share in np.array_split(ids, count)]
    return torch.stack([table[share].float().mean(dim=0) for share in shares])


class EmbeddingTask(TuningTask):
    """Train the vectors that captions name."""

    def vectors(self) -> Mapping[str, Tensor] | None:
        """Return the model itself."""
        assert isinstance(self.model, nn.ParameterDict)
        return dict(self.model.items())


def prepare_lora(networks: Networks, options: TuningOptions, output: Path) -> Prepared:
    """Prepare a LoRA that adds nothing yet."""
    assert isinstance(options, LoraOptions)
    changed: dict[str, nn.Module] = {"unet": networks.unet}
    if options.text_encoder:
        changed = {**networks.text_encoders, **changed}
    lora = Lora(
        changed,
        rank=options.rank,
        alpha=float(options.rank if options.alpha is None else options.alpha),
        targets=options.targets,
        conv_rank=options.conv_rank,
        conv_alpha=float(options.conv_rank if options.conv_alpha is None else options.conv_alpha),
    )

    def save(place: Path, steps: int, about: Mapping[str, str]) -> None:
        dtype = TORCH_DTYPES[options.save_precision]
        save_lora(place, lora, networks.checkpoint, options.names, about, dtype)

    return Prepared(lora, TextEncoding(networks, is_trained=options.text_encoder), save)


def prepare_hypernetwork(networks: Networks, options: TuningOptions, output: Path) -> Prepared:
    """Prepare hypernetworks that change contexts by little."""
    assert isinstance(options, HypernetworkOptions)
    model = Hypernetworks(
        networks.unet,
        structure=options.structure,
        activation=options.activation,
        layer_norm=options.layer_norm,
        activate_output=options.activate_output,
        dropout=options.hidden_dropout,
        widths=options.widths,
    )

    def save(place: Path, steps: int, about: Mapping[str, str]) -> None:
        save_hypernetwork(place, model, place.stem, steps, networks.checkpoint)

    return Prepared(model, TextEncoding(networks), save)


def prepare_whole(networks: Networks, options: TuningOptions, output: Path) -> Prepared:
    """Prepare the U-Net, and the text encoders where they are trained too."""
    assert isinstance(options, WholeOptions)
    trained: dict[str, nn.Module] = {"unet": networks.unet}
    if options.text_encoder:
        trained |= networks.text_encoders
    model = trainable(trained)

    def save(place: Path, steps: int, about: Mapping[str, str]) -> None:
        save_whole(place, networks.checkpoint, trained, options.save_precision)

    texts = TextEncoding(networks, is_trained=options.text_encoder)
    task = DreamBoothTask if isinstance(options, DreamBoothOptions) else TuningTask
    return Prepared(model, texts, save, task)


def prepare_controlnet(networks: Networks, options: TuningOptions, output: Path) -> Prepared:
    """Prepare a ControlNet that adds nothing yet; the U-Net is locked."""
    assert isinstance(options, ControlOptions)
    widths = hint_widths(networks.checkpoint.vae_config.downscale)
    model = controlnet_of(networks.unet, widths).to(networks.device)

    def save(place: Path, steps: int, about: Mapping[str, str]) -> None:
        assert isinstance(model, ControlNetModel)
        save_network(place, model, TORCH_DTYPES[options.save_precision])

    return Prepared(model, TextEncoding(networks), save, ControlTask)


PREPARE: Mapping[str, Callable[[Networks, Any, Path], Prepared]] = MappingProxyType({
    "embedding": prepare_embedding,
    "hypernetwork": prepare_hypernetwork,
    "lora": prepare_lora,
    "dreambooth": prepare_whole,
    "controlnet": prepare_controlnet,
    "finetune": prepare_whole,
})  # fmt: skip


def trained_networks(options: TuningOptions, text_parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the networks whose own weights are trained, so that they are held in fp32."""
    if not isinstance(options, WholeOptions):
        return ()
    return ("unet", *text_parts) if options.text_encoder else ("unet",)
