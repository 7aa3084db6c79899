"""Open a checkpoint in the layout that diffusers writes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sdengine.checkpoints.folder import CheckpointFolder
from sdengine.checkpoints.single_file import SUFFIXES, SingleFileCheckpoint
from sdengine.checkpoints.tokenizer_files import read_tokenizer
from sdengine.checkpoints.weights import Weights, open_weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL, VAEConfig

EXTRAS_FILE = "sdengine.json"
_DIFFUSERS_STEM = "diffusion_pytorch_model"
_TRANSFORMERS_STEM = "model"


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    vae: str | os.PathLike[str] | None = None,
    family: str | None = None,
    prediction_type: str | None = None,
) -> Checkpoint | SingleFileCheckpoint:
    """Open a checkpoint; its weights are read when a network is asked for.

    Args:
        path: a folder as diffusers writes them, "demo", or a single file with the original names.
        vae, family, prediction_type: of a single file, as `SingleFileCheckpoint` takes them.

    Raises:
        CheckpointError: it is missing, incomplete, damaged, or of another kind of model.
    """
    if path != "demo" and isinstance(path, (str, os.PathLike)):
        place = Path(os.fsdecode(path))
        if place.suffix.lower() in SUFFIXES and not place.is_dir():
            return SingleFileCheckpoint(
                place, vae=vae, family=family, prediction_type=prediction_type
            )
    given = {"vae": vae, "family": family, "prediction_type": prediction_type}
    for name, value in given.items():
        if value is not None:
            raise ConfigError.for_field(name, value, "nothing, because the folder says it itself")
    return Checkpoint(CheckpointFolder(path))


class Checkpoint:
    """The networks, tokenizer and noise schedule of one model.

    Every configuration is checked when the checkpoint is opened, and every weight file when its
    network is asked for.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self.root = folder.root
        self.name = folder.root.resolve().name[:200] or "checkpoint"
        index = folder.json("model_index.json")
        self.parts = _parts(self.root, index)
        self.requires_aesthetic_score = bool(index.get("requires_aesthetics_score", False))
        self.zero_empty_negative = (
            bool(index.get("force_zeros_for_empty_prompt", "text_encoder_2" in self.parts))
            and "text_encoder_2" in self.parts
        )
        self.unet_config = _config(folder, "unet", UNetConfig.from_dict)
        self.vae_config = _config(folder, "vae", VAEConfig.from_dict)
        self.text_encoder_configs: dict[str, TextEncoderConfig] = {
            part: _config(folder, part, TextEncoderConfig.from_dict)
            for part in self.parts
            if part.startswith("text_encoder")
        }
        self.scheduler_config: dict[str, Any] = folder.json("scheduler/scheduler_config.json")

    @property
    def family(self) -> str:
        """ "sd1", "sd2", "sdxl" or "sdxl-refiner": which publication the architecture follows."""
        if self.unet_config.addition_embed_type is not None:
            return "sdxl-refiner" if self.requires_aesthetic_score else "sdxl"
        return "sd2" if self.unet_config.use_linear_projection else "sd1"

    @property
    def defaults(self) -> dict[str, Any]:
        """Values that requests should take when they name none, such as the guidance scale.

        They come from an optional `sdengine.json`, which diffusers does not read.
        """
        if self._folder.find(EXTRAS_FILE) is None:
            return {}
        defaults = self._folder.json(EXTRAS_FILE).get("defaults", {})
        if not isinstance(defaults, dict):
            raise CheckpointError(f"{self.root / EXTRAS_FILE}: defaults is not an object.")
        return defaults

    @property
    def pad_tokens(self) -> dict[str, str]:
        """What prompts are padded with, by text encoder."""
        return {part: self._pad_token(part) for part in self.text_encoder_configs}

    def _pad_token(self, part: str) -> str:
        name = f"{part.replace('text_encoder', 'tokenizer')}/tokenizer_config.json"
        token = self._folder.json(name).get("pad_token") if self._folder.find(name) else None
        if isinstance(token, dict):
            token = token.get("content")
        if token is None:
            return "<|endoftext|>"
        if not isinstance(token, str) or not 0 < len(token) <= 200:
            raise CheckpointError(f"{self.root / name}: pad_token is not a token.")
        return token

    def unet(self, dtype: torch.dtype | None = torch.float32) -> UNet2DConditionModel:
        """Return the U-Net with its weights."""
        module = self._weights("unet").load_into(
            lambda: UNet2DConditionModel(self.unet_config), dtype
        )
        assert isinstance(module, UNet2DConditionModel)
        return module

    def vae(self, dtype: torch.dtype | None = torch.float32) -> AutoencoderKL:
        """Return the autoencoder with its weights."""
        module = self._weights("vae").load_into(lambda: AutoencoderKL(self.vae_config), dtype)
        assert isinstance(module, AutoencoderKL)
        return module

    def text_encoder(
        self, dtype: torch.dtype | None = torch.float32, part: str = "text_encoder"
    ) -> CLIPTextEncoder:
        """Return a text encoder with its weights."""
        config = self.text_encoder_configs[part]
        module = self._weights(part).load_into(lambda: CLIPTextEncoder(config), dtype)
        assert isinstance(module, CLIPTextEncoder)
        return module

    def tokenizer_files(self) -> dict[str, bytes]:
        """Return the contents of vocab.json and merges.txt."""
        part = next(iter(self.text_encoder_configs)).replace("text_encoder", "tokenizer")
        return read_tokenizer(self._folder, part)

    @cached_property
    def sha256(self) -> str:
        """Identify the content: one hash over configurations, weights and tokenizer."""
        files = [self._folder.file("scheduler/scheduler_config.json")]
        for part in self.parts:
            files.append(self._folder.file(f"{part}/config.json"))
            files += self._weights(part).files
        digest = hashlib.sha256()
        for path in sorted(files):
            digest.update(path.relative_to(self.root).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        for name, content in self.tokenizer_files().items():
            digest.update(name.encode() + b"\0" + content)
        return digest.hexdigest()

    def _weights(self, part: str) -> Weights:
        is_text = part.startswith("text_encoder")
        stem = _TRANSFORMERS_STEM if is_text else _DIFFUSERS_STEM
        return open_weights(self._folder, part, stem)


_CLASSES = {
    "text_encoder": "CLIPText",
    "text_encoder_2": "CLIPText",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}


def _parts(root: Path, index: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the networks that the index lists, and refuse other models."""
    kind = index.get("_class_name")
    parts = []
    for part, wanted in _CLASSES.items():
        entry = index.get(part)
        class_name = entry[-1] if isinstance(entry, list) and entry else None
        if part.startswith("text_encoder") and class_name is None:
            continue
        if not isinstance(class_name, str) or not class_name.startswith(wanted):
            raise CheckpointError(
                f"{root / 'model_index.json'}: {part} is {class_name!r} of a {kind!r}; expected "
                f"{wanted}*. This is not a Stable Diffusion checkpoint."
            )
        parts.append(part)
    if len(parts) == 2:
        raise CheckpointError(
            f"{root / 'model_index.json'}: a {kind!r} without a text encoder. This is not a Stable "
            "Diffusion checkpoint."
        )
    return tuple(parts)


def _config(folder: CheckpointFolder, part: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    name = f"{part}/config.json"
    content = folder.json(name)
    try:
        return read(content)
    except ConfigError as error:
        raise CheckpointError(f"{folder.root / name}: {error}") from None
