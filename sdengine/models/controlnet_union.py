"""Union ControlNet: one network for many kinds of control picture, told which kind it reads.

Source: "ControlNet++" as diffusers' ControlNetUnionModel publishes it; parameter names of that, but
for what `checkpoints.control_names` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel
from sdengine.models.layers import quick_gelu
from sdengine.models.ops import OpsModule
from sdengine.models.timesteps import TimestepEmbedding, timestep_embedding

UNION = "ControlNetUnionModel"


@dataclass(frozen=True)
class ControlNetUnionConfig(ControlNetConfig):
    """Describe a union ControlNet.

    Args:
        num_control_type: kinds of picture: 6, or 8 with tiles and inpainting.
        num_trans_channel, num_trans_head, num_trans_layer: of the transformer that looks at the
            picture as a whole.
        num_proj_channel: of what it adds to each position.
    """

    conditioning_embedding_out_channels: tuple[int, ...] = (48, 96, 192, 384)
    num_control_type: int = 6
    num_trans_channel: int = 320
    num_trans_head: int = 8
    num_trans_layer: int = 1
    num_proj_channel: int = 320

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        super().__post_init__()
        width, heads = self.unet.block_out_channels[0], self.num_trans_head
        for field in ("num_trans_channel", "num_proj_channel"):
            if getattr(self, field) != width:
                accepted = f"the first of block_out_channels, {width}"
                raise ConfigError.for_field(f"controlnet.{field}", getattr(self, field), accepted)
        if heads < 1 or width % heads:
            raise ConfigError.for_field(
                "controlnet.num_trans_head", heads, f"a divisor of num_trans_channel={width}"
            )
        if not 1 <= self.num_control_type <= 64:
            raise ConfigError.for_field(
                "controlnet.num_control_type", self.num_control_type, "from 1 to 64"
            )
        if not 1 <= self.num_trans_layer <= 64:
            raise ConfigError.for_field(
                "controlnet.num_trans_layer", self.num_trans_layer, "from 1 to 64"
            )
        if self.unet.addition_time_embed_dim is None:
            raise ConfigError(
                "controlnet.addition_time_embed_dim: it is missing; the kind of picture is "
                "embedded in that width."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the config as diffusers' ControlNetUnionModel reads it."""
        names = ("control_type", "trans_channel", "trans_head", "trans_layer", "proj_channel")
        own = {f"num_{name}": getattr(self, f"num_{name}") for name in names}
        return {**super().to_dict(), "_class_name": UNION, **own}


class _Attention(nn.Module):
    """Values and the layer behind them: the whole attention of a token to itself alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.v_proj(x))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(quick_gelu(self.c_fc(x)))
        return out


class _Block(OpsModule):
    """One layer of the transformer.

    The published code gives its attention images as if they were tokens, so that each picture's
    token attends to the same picture's of the other images of a batch. For one image, with or
    without a guidance row, all of these are equal and the result is the token's value; that is
    what is computed, so that no image depends on the others.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = _Attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = _MLP(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,1,width]."""
        attended = self.attn(self.ops.layer_norm(self.ln_1, x))
        normed, x = self.ops.add_layer_norm(self.ln_2, attended, x)
        out: Tensor = x + self.mlp(normed)
        return out


class ControlNetUnionModel(ControlNetModel):
    """Predict what to add to the U-Net's kept results, from a picture of a kind that is told."""

    def __init__(self, config: ControlNetUnionConfig) -> None:
        super().__init__(config)
        self.union_config = config
        width, temb = config.num_trans_channel, 4 * config.unet.block_out_channels[0]
        sines = config.unet.addition_time_embed_dim or 0
        self.heads, self.head_dim = config.num_trans_head, width // config.num_trans_head
        self.task_embedding = nn.Linear(config.num_control_type, width, bias=False)
        self.transformer_layes = nn.ModuleList(_Block(width) for _ in range(config.num_trans_layer))
        self.spatial_ch_projs = nn.Linear(width, config.num_proj_channel)
        self.control_add_embedding = TimestepEmbedding(sines * config.num_control_type, temb)

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        control_type: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Predict the residuals at scale 1.

        Args:
            sample, timestep, encoder_hidden_states, text_embeds, time_ids: as a ControlNet's.
            controlnet_cond: [B,conditioning_channels,8h,8w] control picture in [0,1].
            control_type: [B,num_control_type] 1 at the picture's kind, 0 elsewhere.

        Returns:
            The U-Net's down_residuals and mid_residual.
        """
        temb = self.embed_time(timestep, sample.dtype, text_embeds, time_ids, None)
        kinds = timestep_embedding(
            control_type.flatten(), self.union_config.unet.addition_time_embed_dim or 0
        )
        kinds = kinds.reshape(control_type.shape[0], -1).to(sample.dtype)
        temb = temb + self.control_add_embedding(kinds)
        hint = self.controlnet_cond_embedding(controlnet_cond)
        task = self.task_embedding(control_type)[:, None]  # [B,1,C]
        token = self._mean(task, hint) + task
        for layer in self.transformer_layes:
            token = layer(token)
        added = self.spatial_ch_projs(token).transpose(1, 2).unsqueeze(3)  # [B,C,1,1]
        x = self.conv_in(sample) + added + hint
        return self.residuals(x, temb, encoder_hidden_states)

    def _mean(self, task: Tensor, hint: Tensor) -> Tensor:
        """Return the mean [B,1,C] over height and width of a map [B,C,h,w].

        It is an attention at scale 0, which every target has; a mean some have not.
        """
        tokens = hint.flatten(2).transpose(1, 2)  # [B,h*w,C]
        q, k, v = (
            torch.unflatten(each, 2, (self.heads, self.head_dim)).transpose(1, 2)
            for each in (task, tokens, tokens)
        )
        out: Tensor = self.ops.attention(q, k, v, 0.0).transpose(1, 2).flatten(2)
        return out
