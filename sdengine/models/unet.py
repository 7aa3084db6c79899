"""The conditional U-Net: predicts the noise (or v) in latents, given a timestep and a text.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al. 2022); the
added conditioning is that of "SDXL" (Podell et al. 2023), section 2.2. Parameter names of
diffusers' UNet2DConditionModel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import read_fields
from sdengine.models.ops import OpsModule
from sdengine.models.timesteps import TimestepEmbedding, timestep_embedding
from sdengine.models.unet_blocks import DownBlock, LevelSpec, MidBlock, UpBlock
from sdengine.models.unet_keys import FIXED, HARMLESS

_WITH_ATTENTION = {
    "DownBlock2D": False,
    "CrossAttnDownBlock2D": True,
    "UpBlock2D": False,
    "CrossAttnUpBlock2D": True,
}
_MAX_BLOCKS = 1024
_ATTENDING_MIDDLE = "UNetMidBlock2DCrossAttn"
# What a config.json that leaves a key out means by that, where it is not what SD 1 has.
_LEFT_OUT = {"cross_attention_dim": 1280}

FEATURES = 4  # of every T2I-Adapter

Depths = tuple[int | tuple[int, ...], ...]


@dataclass(frozen=True)
class UNetConfig:
    """Describe a U-Net; fields carry the names and quirks of diffusers' ``config.json``.

    ``attention_head_dim`` is the *number* of heads of each level, whatever its name says. Distilled
    networks have numbers of layers and of transformer blocks for each level or layer by itself, and
    less of a middle: "UNetMidBlock2D" is one residual block, None is nothing.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int = 768
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    mid_block_type: str | None = _ATTENDING_MIDDLE
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: int | None = None

    def __post_init__(self) -> None:
        """Refuse what this network cannot be built as."""
        levels = len(self.block_out_channels)
        for field in (
            "in_channels",
            "out_channels",
            "cross_attention_dim",
            "norm_num_groups",
            "time_cond_proj_dim",
        ):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise ConfigError.for_field(f"unet.{field}", getattr(self, field), "at least 1")
        for field in ("down_block_types", "up_block_types"):
            types = getattr(self, field)
            if len(types) != levels or any(t not in _WITH_ATTENTION for t in types):
                raise ConfigError.for_field(
                    f"unet.{field}", types, f"{levels} of {', '.join(_WITH_ATTENTION)}"
                )
        self._check_depths()
        for channels, heads in zip(self.block_out_channels, self.num_heads, strict=True):
            if channels < 1 or heads < 1 or channels % heads or channels % self.norm_num_groups:
                raise ConfigError.for_field(
                    "unet.block_out_channels",
                    self.block_out_channels,
                    f"multiples of the heads {self.num_heads} and of norm_num_groups="
                    f"{self.norm_num_groups}",
                )
        for field in ("block_out_channels", "addition_time_embed_dim"):
            value = getattr(self, field)
            if (value[0] if isinstance(value, tuple) else value or 0) % 2:
                raise ConfigError.for_field(f"unet.{field}", value, "even numbers: half are sines")
        if self.addition_embed_type not in (None, "text_time"):
            raise ConfigError.for_field(
                "unet.addition_embed_type", self.addition_embed_type, "null or 'text_time'"
            )
        if self.addition_embed_type and not (
            self.addition_time_embed_dim and self.projection_class_embeddings_input_dim
        ):
            raise ConfigError(
                "unet.addition_embed_type: 'text_time' needs addition_time_embed_dim and "
                "projection_class_embeddings_input_dim."
            )

    def _check_depths(self) -> None:
        """Refuse numbers of layers and transformer blocks that do not fit the levels."""
        levels = len(self.block_out_channels)
        for field in (
            "attention_head_dim",
            "layers_per_block",
            "transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
        ):
            value = getattr(self, field)
            if isinstance(value, tuple) and len(value) != levels:
                raise ConfigError.for_field(f"unet.{field}", value, f"one or {levels} entries")
        if min(self.num_layers) < 1:
            raise ConfigError.for_field("unet.layers_per_block", self.layers_per_block, "from 1")
        if self.mid_block_type not in (_ATTENDING_MIDDLE, "UNetMidBlock2D", None):
            raise ConfigError.for_field(
                "unet.mid_block_type",
                self.mid_block_type,
                f"{_ATTENDING_MIDDLE}, UNetMidBlock2D or null",
            )
        field = "transformer_layers_per_block"
        if self.reverse_transformer_layers_per_block is not None:
            field = f"reverse_{field}"
        elif any(isinstance(entry, tuple) for entry in self._per_level(getattr(self, field))):
            raise ConfigError(
                f"unet.{field}: {getattr(self, field)} differs from layer to layer, which needs "
                f"reverse_{field} for the way up."
            )
        wanted = [*self.num_layers, *(layers + 1 for layers in reversed(self.num_layers))]
        found = [
            *map(self.down_depths, range(levels)),
            *map(self.up_depths, range(levels)),
        ]
        if any(depths and len(depths) != n for depths, n in zip(found, wanted, strict=True)):
            raise ConfigError.for_field(
                "unet.transformer_layers_per_block and reverse_transformer_layers_per_block",
                found,
                f"an entry for each of the layers {wanted}",
            )
        if sum(map(sum, found)) > _MAX_BLOCKS:
            raise ConfigError.for_field(
                "unet.transformer_layers_per_block",
                self.transformer_layers_per_block,
                f"at most {_MAX_BLOCKS} blocks in all",
            )

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return self._per_level(self.attention_head_dim)

    @property
    def num_layers(self) -> tuple[int, ...]:
        """Residual blocks of each level on the way down; there is one more on the way up."""
        return self._per_level(self.layers_per_block)

    def down_depths(self, level: int) -> tuple[int, ...]:
        """Return the transformer blocks behind each layer of a level (0 is the finest)."""
        entry = self._per_level(self.transformer_layers_per_block)[level]
        return _depths(self.down_block_types[level], entry, self.num_layers[level])

    def up_depths(self, index: int) -> tuple[int, ...]:
        """Return the same on the way up, where 0 is the coarsest level."""
        entries: Depths | None = self.reverse_transformer_layers_per_block
        if entries is None:
            entries = self._per_level(self.transformer_layers_per_block)[::-1]
        layers = self.num_layers[::-1][index] + 1
        return _depths(self.up_block_types[index], entries[index], layers)

    @property
    def mid_depths(self) -> tuple[int, ...]:
        """Transformer blocks of the middle, which attends whatever the last level's type is."""
        if self.mid_block_type != _ATTENDING_MIDDLE:
            return ()
        entry = self._per_level(self.transformer_layers_per_block)[-1]
        return (entry if isinstance(entry, int) else entry[0],)

    def _per_level(self, value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Read diffusers' ``unet/config.json``, a missing key as diffusers does."""
        read = cls(**read_fields(cls, {**_LEFT_OUT, **config}, "unet", FIXED, HARMLESS))
        width = 4 * read.block_out_channels[0]
        if config.get("time_embedding_dim") not in (None, width):
            raise ConfigError.for_field(
                "unet.time_embedding_dim", config["time_embedding_dim"], f"null or {width}"
            )
        return read

    def to_dict(self) -> dict[str, Any]:
        """Return the config as diffusers' UNet2DConditionModel reads it.

        Keys that the published networks do not set are left out at their defaults.
        """
        values = {k: _lists(v) for k, v in asdict(self).items()}
        for field in ("reverse_transformer_layers_per_block", "mid_block_type"):
            if values[field] == getattr(UNetConfig, field):
                del values[field]
        return {"_class_name": "UNet2DConditionModel", **values}

    def level(self, index: int, depths: tuple[int, ...]) -> LevelSpec:
        """Return how blocks of a level (0 is the finest) are made that attend so deep."""
        return LevelSpec(
            channels=self.block_out_channels[index],
            depths=depths,
            num_heads=self.num_heads[index],
            context_channels=self.cross_attention_dim,
            temb_channels=4 * self.block_out_channels[0],
            groups=self.norm_num_groups,
            eps=self.norm_eps,
            linear_projection=self.use_linear_projection,
        )

    @property
    def residual_channels(self) -> tuple[int, ...]:
        """Channels of the results kept on the way down: what ControlNet residuals are added to."""
        widths = self.block_out_channels
        kept = [widths[0]]
        for level, width in enumerate(widths):
            kept += [width] * (self.num_layers[level] + (level < len(widths) - 1))
        return tuple(kept)

    @property
    def feature_places(self) -> tuple[tuple[int, int], ...]:
        """Channels and level of what a T2I-Adapter's features are added to, in their order.

        They are four: one in each level, behind its last layer where it attends and else behind
        its downsampler, and one behind the middle block where there are three levels.
        """
        last = len(self.block_out_channels) - 1
        places = [
            (width, index if self.down_depths(index) else min(index + 1, last))
            for index, width in enumerate(self.block_out_channels)
        ]
        if len(places) < FEATURES:
            places.append((self.block_out_channels[-1], last))
        return tuple(places[:FEATURES])


def _depths(block_type: str, entry: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    if not _WITH_ATTENTION[block_type]:
        return ()
    return (entry,) * layers if isinstance(entry, int) else entry


def _lists(value: Any) -> Any:
    """Return tuples, and those in them, as JSON has them."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


class ConditionedEncoder(OpsModule):
    """The half that U-Net and ControlNet share: embeddings, the way down, the middle."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        temb = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], temb, config.time_cond_proj_dim)
        if config.addition_embed_type == "text_time":
            assert config.projection_class_embeddings_input_dim is not None
            self.add_embedding = TimestepEmbedding(
                config.projection_class_embeddings_input_dim, temb
            )
        self.down_blocks = nn.ModuleList(
            DownBlock(
                config.level(i, config.down_depths(i)),
                widths[max(i - 1, 0)],
                config.num_layers[i],
                downsample=i < len(widths) - 1,
            )
            for i in range(len(widths))
        )
        self.has_middle = config.mid_block_type is not None
        if self.has_middle:
            self.mid_block = MidBlock(config.level(len(widths) - 1, config.mid_depths))

    def embed_time(
        self,
        timestep: Tensor,
        dtype: torch.dtype,
        text_embeds: Tensor | None,
        time_ids: Tensor | None,
        timestep_cond: Tensor | None,
    ) -> Tensor:
        """Return the embedding [B,4*width] of timestep [B] and the added conditioning."""
        features = timestep_embedding(timestep, self.config.block_out_channels[0])
        temb: Tensor = self.time_embedding(features.to(dtype), timestep_cond)
        if self.config.addition_embed_type == "text_time":
            if text_embeds is None or time_ids is None:
                raise ConfigError("this U-Net needs text_embeds [B,P] and time_ids [B,6]")
            width = self.config.addition_time_embed_dim or 256
            sizes = timestep_embedding(time_ids.flatten(), width)  # [B*6, width]
            sizes = sizes.reshape(text_embeds.shape[0], -1).to(dtype)
            added = torch.cat([text_embeds, sizes], dim=-1)
            temb = temb + self.add_embedding(added)
        return temb

    def descend(
        self, x: Tensor, temb: Tensor, context: Tensor, features: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the middle block's input and all kept results, x first; levels add features."""
        skips = [x]
        for index, block in enumerate(self.down_blocks):
            feature = features[index] if index < len(features) else None
            x, kept = block(x, temb, context, feature)
            skips += kept
        return x, skips

    def middle(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        """Return the middle block's result, or its input where there is none."""
        out: Tensor = self.mid_block(x, temb, context) if self.has_middle else x
        return out


class UNet2DConditionModel(ConditionedEncoder):
    """Predict the noise in latents."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        kept = list(config.residual_channels)
        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for i in range(len(widths)):
            level = last - i
            skips = [kept.pop() for _ in range(config.num_layers[level] + 1)]
            spec = config.level(level, config.up_depths(i))
            self.up_blocks.append(UpBlock(spec, below, skips, upsample=level > 0))
            below = widths[level]
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
        adapter_features: Sequence[Tensor] = (),
    ) -> Tensor:
        """Predict.

        Args:
            sample: [B,in_channels,h,w] scaled latents.
            timestep: [B], in training steps; fractions are allowed.
            encoder_hidden_states: [B,S,cross_attention_dim] text embeddings.
            text_embeds: [B,P] pooled text embedding (SDXL).
            time_ids: [B,6] sizes and crops in pixels (SDXL; 5 for its refiner).
            timestep_cond: [B,time_cond_proj_dim] guidance embedding (LCM).
            down_residuals: ControlNet's, one for each of residual_channels.
            mid_residual: ControlNet's for the middle block.
            adapter_features: a T2I-Adapter's, one for each of feature_places.

        Returns:
            [B,out_channels,h,w].
        """
        temb = self.embed_time(timestep, sample.dtype, text_embeds, time_ids, timestep_cond)
        steering = (down_residuals, mid_residual, adapter_features)
        return self.predict(sample, temb, encoder_hidden_states, *steering)

    def predict(
        self, sample: Tensor, temb: Tensor, context: Tensor,
        down_residuals: Sequence[Tensor] | None = None, mid_residual: Tensor | None = None,
        adapter_features: Sequence[Tensor] = (),
    ) -> Tensor:  # fmt: skip
        """Do the same, given what `embed_time` made of the timestep and of what is added."""
        x = self.conv_in(sample)
        x, skips = self.descend(x, temb, context, adapter_features)
        x = self.middle(x, temb, context)
        for feature in adapter_features[len(self.down_blocks) :]:
            x = x + feature
        if down_residuals is not None:
            skips = [s + r for s, r in zip(skips, down_residuals, strict=True)]
        if mid_residual is not None:
            x = x + mid_residual
        for block in self.up_blocks:
            x = block(x, skips, temb, context)
        x = self.ops.group_norm(self.conv_norm_out, x, silu=True)
        out: Tensor = self.conv_out(x)
        return out
