"""The CLIP image encoders that IP-Adapters read: vision transformers with a projection.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al.
2021), section 2.4; parameter names of transformers' CLIPVisionModelWithProjection checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import read_fields
from sdengine.models.ops import OpsModule
from sdengine.models.text_encoder import ACTIVATIONS, CLIPEncoderLayer, embedding_table
from sdengine.models.transformers_keys import HARMLESS

# What transformers can vary and the published image encoders do not.
FIXED = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "pruned_heads": {},
}
_MAX_PATCH = 15  # pixels, of the native target's convolutions
_MAX_TOKENS = 4096


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Describe an image encoder; fields carry the names of transformers' ``config.json``.

    Defaults are transformers', which leaves them out of the file.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        if self.hidden_act not in ACTIVATIONS:
            self._refuse("hidden_act", f"one of {sorted(ACTIVATIONS)}")
        for field in ("intermediate_size", "projection_dim", "num_attention_heads"):
            if getattr(self, field) < 1:
                self._refuse(field, "at least 1")
        if self.num_hidden_layers < 2:
            self._refuse("num_hidden_layers", "at least 2: adapters read what the last one reads")
        if self.hidden_size < 1 or self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            self._refuse("hidden_size", f"a positive multiple of num_attention_heads={heads}")
        if not 1 <= self.patch_size <= _MAX_PATCH:
            self._refuse("patch_size", f"1 to {_MAX_PATCH}; adapters read encoders of 14")
        if self.image_size < 1 or self.image_size % self.patch_size:
            self._refuse("image_size", f"a positive multiple of patch_size={self.patch_size}")
        if self.num_tokens > _MAX_TOKENS:
            self._refuse("image_size", f"squares of patch_size for at most {_MAX_TOKENS} tokens")

    @property
    def num_tokens(self) -> int:
        """Squares of a picture, and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ImageEncoderConfig:
        """Read transformers' ``image_encoder/config.json``, a missing key as transformers does."""
        return cls(**read_fields(cls, config, "image_encoder", FIXED, HARMLESS))

    def to_dict(self) -> dict[str, Any]:
        """Return the config as transformers' CLIPVisionModelWithProjection reads it."""
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            **asdict(self),
        }

    def _refuse(self, field: str, accepted: str) -> None:
        raise ConfigError.for_field(f"image_encoder.{field}", getattr(self, field), accepted)


class _Embeddings(nn.Module):
    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, size, stride=size, bias=False)
        # The class token's own embedding is in its row.
        self.position_embedding = embedding_table(config.num_tokens, config.hidden_size)


class _Encoder(nn.Module):
    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )


class _VisionModel(nn.Module):
    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        # Spelled so in the published files.
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class CLIPImageEncoder(OpsModule):
    """Encode pictures that are cut into squares, as `inputs.clip_pictures` lays them out."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _VisionModel(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            patches: [B,3,P,T*P], squares side by side, the first of them zero: there the
                convolution, which has no bias, gives nothing, and the class token stands.

        Returns:
            states [B,T,D], what the last layer reads; and embeds [B,T,E], the normed and projected
            states that it gives, of which the first is the picture's embedding.
        """
        model = self.vision_model
        tokens = model.embeddings.patch_embedding(patches).flatten(2).transpose(1, 2)  # [B,T,D]
        positions = model.embeddings.position_embedding.weight
        x = self.ops.layer_norm(model.pre_layrnorm, tokens + positions[: self.config.num_tokens])
        *layers, last = model.encoder.layers
        for layer in layers:
            x = layer(x)
        embeds: Tensor = self.visual_projection(self.ops.layer_norm(model.post_layernorm, last(x)))
        return x, embeds
