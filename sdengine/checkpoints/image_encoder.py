"""Image encoder that goes with a checkpoint, for the IP-Adapters that requests bring."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sdengine.bundle.image_prompts import IMAGE_ENCODER
from sdengine.checkpoints.part_source import PartConfig, PartSource
from sdengine.checkpoints.weights import Weights
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.image_encoder import ImageEncoderConfig
from sdengine.storage.checkpoint_folder import TRANSFORMERS_STEMS, CheckpointFolder

_CONFIG_FILE = "config.json"
_CLASS = "CLIPVisionModelWithProjection"
_CLASS_TOKEN = "vision_model.embeddings.class_embedding"
_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_IGNORED = "vision_model.embeddings.position_ids"  # numbers from 0 on, in older files
_OWN = ("vision_model.", "visual_projection.")


@dataclass(frozen=True)
class ImageEncoderCheckpoint(PartSource):
    """Hold an image encoder: a checked configuration, weights that are read when asked for.

    Args:
        root: the folder.
        name: for people.
        config_of_encoder: of the network.
        open_weights: opens the files of the one part, whatever it is called.
    """

    root: Path
    name: str
    config_of_encoder: ImageEncoderConfig
    open_weights: Callable[[str], Weights] = field(repr=False)

    @property
    def configs(self) -> dict[str, PartConfig]:
        """The one network's configuration."""
        return {IMAGE_ENCODER: self.config_of_encoder}


def open_image_encoder(place: str | os.PathLike[str]) -> ImageEncoderCheckpoint:
    """Open a folder as transformers' CLIPVisionModelWithProjection.save_pretrained writes it.

    Args:
        place: that folder, or one with such a folder "image_encoder".

    Raises:
        ConfigError: it is no path.
        CheckpointError: it is missing, incomplete, damaged, or of another kind of network.
    """
    try:
        root = Path(os.fsdecode(place))
        is_folder = root.is_dir()
    except TypeError:
        raise ConfigError.for_field("image_encoder", place, "the path of a folder") from None
    except (OSError, ValueError):
        is_folder = False
    if not is_folder:
        raise CheckpointError(
            f"image_encoder: {str(place)[:200]!r} is no folder. Give one as transformers' {_CLASS} "
            "writes it, with config.json and model.safetensors, such as the folder image_encoder "
            "that IP-Adapters are published with."
        )
    if not (root / _CONFIG_FILE).exists() and (root / IMAGE_ENCODER).is_dir():
        root = root / IMAGE_ENCODER
    folder = CheckpointFolder(root)
    content = folder.json(_CONFIG_FILE)
    kinds = content.get("architectures") or [content.get("model_type")]
    if kinds not in ([_CLASS], ["clip_vision_model"]):
        raise CheckpointError(
            f"{root / _CONFIG_FILE}: it is of {str(kinds)[:80]}; expected {_CLASS}, a CLIP image "
            "encoder with its projection."
        )
    try:
        config = ImageEncoderConfig.from_dict(content)
    except ConfigError as error:
        raise CheckpointError(f"{root / _CONFIG_FILE}: {error}") from None
    files = folder.weight_files(".", TRANSFORMERS_STEMS, None)
    return ImageEncoderCheckpoint(
        root, root.resolve().name[:200] or IMAGE_ENCODER, config, lambda _: _open(files, config)
    )


def _open(files: list[Path], config: ImageEncoderConfig) -> Weights:
    """Open the weights; the class token's embedding goes into the first position's row."""
    weights = Weights(
        files, lambda name: None if name in (_CLASS_TOKEN, _IGNORED) else name, own=_OWN
    )
    token = Weights(files, lambda name: name if name == _CLASS_TOKEN else None, own=_OWN)
    weights.left_out = {
        place: what for place, what in weights.left_out.items() if place[1] != _CLASS_TOKEN
    }
    expected = {_CLASS_TOKEN: (config.hidden_size,)}

    def derive(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name != _POSITIONS:
            return tensor
        ((_, row),) = token.tensors(expected)
        made = tensor.float().clone()
        made[0] += row.float()
        return made

    weights.derive = derive
    return weights
