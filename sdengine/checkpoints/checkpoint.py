"""Checkpoint: the parts of one model, whichever way they came in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sdengine.checkpoints.guesses import Guess
from sdengine.checkpoints.part_source import PartConfig, PartSource
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError
from sdengine.models.configs import ModelArchitecture
from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from sdengine.models.tiny_vae import TinyVAEConfig
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL, VAEConfig

FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TINY_VAE = "tiny_vae"
# What time_ids holds: original size, crop and target size; or an aesthetic score for the last.
_TIME_IDS, _TIME_IDS_WITH_SCORE = 6, 5


@dataclass(frozen=True)
class Checkpoint(PartSource):
    """Hold one model: configurations that were checked, weights that are read when asked for.

    Args:
        root: the folder or file that it came from.
        name: for people.
        unet_config, vae_config: of these networks.
        text_encoder_configs: by "text_encoder" or "text_encoder_2", in the order in which the
            outputs are joined; SDXL's refiner has the second only.
        pad_tokens: what prompts are padded with, with the same keys.
        scheduler_config: content of diffusers' scheduler_config.json.
        defaults: values that requests should take when they name none, such as guidance_scale.
        zero_empty_negative: an empty negative prompt is conditioned by zeros (SDXL).
        requires_aesthetic_score: the U-Net's time ids hold a score in place of the target size.
        open_weights: opens the files of a part.
        read_tokenizer: returns the contents of vocab.json, merges.txt, and added_tokens.json where
            there are such tokens; they serve every encoder.
        max_lengths: the most tokens of a prompt, by text encoder, where the tokenizer has a limit.
        not_taken_over: a line for each thing in its files that has no effect here.
        resolutions: sides, or pairs of width and height, that bundles are built for if none are
            named; empty for the size that the U-Net was trained at.
        batch: images that one run of such a bundle makes.
        guesses: what the files do not say and was assumed.
        tiny_vae_config: of the autoencoder for previews and drafts, where one came with it.
    """

    root: Path
    name: str
    unet_config: UNetConfig
    vae_config: VAEConfig
    text_encoder_configs: dict[str, TextEncoderConfig]
    pad_tokens: dict[str, str]
    scheduler_config: dict[str, Any]
    defaults: dict[str, Any]
    zero_empty_negative: bool
    requires_aesthetic_score: bool
    open_weights: Callable[[str], Weights] = field(repr=False)
    read_tokenizer: Callable[[], dict[str, bytes]] = field(repr=False)
    max_lengths: dict[str, int | None] = field(default_factory=dict)
    not_taken_over: tuple[str, ...] = ()
    resolutions: Sequence[Any] = ()
    batch: int = 1
    guesses: tuple[Guess, ...] = ()
    tiny_vae_config: TinyVAEConfig | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other.

        Raises:
            CheckpointError: the U-Net's added conditioning is not what the encoders give.
        """
        unet = self.unet_config
        if unet.addition_embed_type is None:
            return
        pooling = [c for c in self.text_encoder_configs.values() if c.with_projection]
        count = self.num_time_ids
        found = unet.projection_class_embeddings_input_dim
        pooled = pooling[-1].projection_dim if pooling else 0
        if found != pooled + count * (unet.addition_time_embed_dim or 0):
            raise CheckpointError(
                f"{self.root}: the U-Net's added conditioning has {found} numbers; a pooled "
                f"embedding of {pooled} and {count} time ids of {unet.addition_time_embed_dim} do "
                "not make it. requires_aesthetics_score or an encoder's projection is wrong."
            )

    @property
    def family(self) -> str:
        """Which publication the architecture follows, one of FAMILIES."""
        return _family(self.unet_config, len(self.text_encoder_configs))

    @property
    def num_time_ids(self) -> int:
        """How many sizes and scores a U-Net with size conditioning reads."""
        return _TIME_IDS_WITH_SCORE if self.requires_aesthetic_score else _TIME_IDS

    @property
    def configs(self) -> dict[str, PartConfig]:
        """The networks' configurations, by what a folder calls them."""
        known: dict[str, PartConfig] = {
            **self.text_encoder_configs,
            "unet": self.unet_config,
            "vae": self.vae_config,
        }
        return known if self.tiny_vae_config is None else {**known, TINY_VAE: self.tiny_vae_config}

    def unet(self, dtype: torch.dtype | None = torch.float32) -> UNet2DConditionModel:
        """Return the U-Net; see `load`."""
        module = self.load("unet", dtype)
        assert isinstance(module, UNet2DConditionModel)
        return module

    def vae(self, dtype: torch.dtype | None = torch.float32) -> AutoencoderKL:
        """Return the autoencoder; see `load`."""
        module = self.load("vae", dtype)
        assert isinstance(module, AutoencoderKL)
        return module

    def text_encoder(
        self, dtype: torch.dtype | None = torch.float32, part: str = "text_encoder"
    ) -> CLIPTextEncoder:
        """Return one of the text encoders; see `load`."""
        module = self.load(part, dtype)
        assert isinstance(module, CLIPTextEncoder)
        return module

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the contents of vocab.json, merges.txt, and of added_tokens.json if there is one.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        return self.read_tokenizer()

    def prompt_length(self, part: str) -> int:
        """Return how many tokens of a prompt a text encoder is given, with start and end."""
        positions = self.text_encoder_configs[part].max_position_embeddings
        return min(self.max_lengths.get(part) or positions, positions)

    @cached_property
    def sha256(self) -> str:
        """Identify the content: one hash over networks, noise schedule and tokenizer."""
        content: dict[str, Any] = {
            "parts": {part: self.part_sha256(part) for part in self.parts},
            "scheduler": self.scheduler_config,
            "pad_tokens": self.pad_tokens,
            "zero_empty_negative": self.zero_empty_negative,
            "requires_aesthetic_score": self.requires_aesthetic_score,
            "tokenizer": {
                name: hashlib.sha256(data).hexdigest()
                for name, data in self.tokenizer_files().items()
            },
        }
        shorter = {
            part: self.prompt_length(part)
            for part, config in self.text_encoder_configs.items()
            if self.prompt_length(part) < config.max_position_embeddings
        }
        if shorter:
            content["prompt_lengths"] = shorter
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def family_of(architecture: ModelArchitecture) -> str:
    """Return the family that a published architecture belongs to, one of FAMILIES."""
    return _family(architecture.unet, len(architecture.text_parts))


def _family(unet: UNetConfig, num_text_encoders: int) -> str:
    if unet.addition_embed_type is not None:
        return "sdxl" if num_text_encoders > 1 else "sdxl-refiner"
    return "sd2" if unet.use_linear_projection else "sd1"
