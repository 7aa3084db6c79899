"""The CLIP text encoders of Stable Diffusion 1, 2 and XL.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al.
2021), section 2.4; parameter names of transformers' CLIPTextModel(WithProjection) checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import read_fields
from sdengine.models.layers import quick_gelu
from sdengine.models.ops import OpsModule
from sdengine.models.transformers_keys import HARMLESS

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}
# What transformers can vary and the published text encoders do not.
FIXED = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "model_type": "clip_text_model",
    "pruned_heads": {},
}
# transformers leaves out of the file what is its own default.
_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "projection_dim": 512,
}


@dataclass(frozen=True)
class TextEncoderConfig:
    """Describe a text encoder; fields carry the names of transformers' ``config.json``."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    projection_dim: int = 768
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    with_projection: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError.for_field(
                "text_encoder.hidden_act", self.hidden_act, f"one of {sorted(ACTIVATIONS)}"
            )
        if self.max_position_embeddings < 2:
            raise ConfigError.for_field(
                "text_encoder.max_position_embeddings",
                self.max_position_embeddings,
                "at least 2: every text has a start and an end token",
            )
        positive = ["vocab_size", "num_attention_heads", "intermediate_size"]
        positive += ["projection_dim"] * self.with_projection
        for field in positive:
            if getattr(self, field) < 1:
                raise ConfigError.for_field(
                    f"text_encoder.{field}", getattr(self, field), "at least 1"
                )
        if self.hidden_size < 1 or self.hidden_size % self.num_attention_heads:
            raise ConfigError.for_field(
                "text_encoder.hidden_size",
                self.hidden_size,
                f"a positive multiple of num_attention_heads={self.num_attention_heads}",
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TextEncoderConfig:
        """Read transformers' ``text_encoder/config.json``, a missing key as transformers does."""
        complete = {**_DEFAULTS, **config}
        known = read_fields(cls, complete, "text_encoder", FIXED, HARMLESS)
        if "CLIPTextModelWithProjection" in (config.get("architectures") or ()):
            known["with_projection"] = True
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as transformers' CLIPTextModel reads it."""
        values = asdict(self)
        suffix = "WithProjection" if values.pop("with_projection") else ""
        return {
            "architectures": [f"CLIPTextModel{suffix}"],
            "model_type": "clip_text_model",
            "pad_token_id": 1,
            **values,
        }


def embedding_table(rows: int, columns: int) -> nn.Embedding:
    """Return a table of rows to look up.

    On the meta device without the values that it begins with, for which torch would import its
    compiler first, which takes seconds.
    """
    if torch.empty(0).is_meta:
        return nn.Embedding(rows, columns, _weight=torch.empty(rows, columns))
    return nn.Embedding(rows, columns)


class _Embeddings(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = embedding_table(config.vocab_size, config.hidden_size)
        self.position_embedding = embedding_table(
            config.max_position_embeddings, config.hidden_size
        )


class CLIPSizes(Protocol):
    """What the layers of CLIP's text and image encoders are made of."""

    @property
    def hidden_size(self) -> int:
        """Channels of a token."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Channels between the two layers of a perceptron."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Of each attention."""
        ...

    @property
    def hidden_act(self) -> str:
        """One of ACTIVATIONS."""
        ...

    @property
    def layer_norm_eps(self) -> float:
        """Of every norm."""
        ...


class _Attention(OpsModule):
    def __init__(self, config: CLIPSizes) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        # A number, because taken from a traced tensor's shape it would become graph nodes.
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            f(x).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # [B,heads,S,d]
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = self.ops.attention(q, k, v, self.head_dim**-0.5, causal_mask=mask)
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return result


class _MLP(nn.Module):
    def __init__(self, config: CLIPSizes) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class CLIPEncoderLayer(OpsModule):
    """Attention and perceptron, each normalised first and added."""

    def __init__(self, config: CLIPSizes) -> None:
        super().__init__()
        eps = config.layer_norm_eps
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=eps)
        self.mlp = _MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [B,S,D]; `mask` [S,S] is added to the scores."""
        attended = self.self_attn(self.ops.layer_norm(self.layer_norm1, x), mask)
        normed, x = self.ops.add_layer_norm(self.layer_norm2, attended, x)
        out: Tensor = x + self.mlp(normed)
        return out


class _Encoder(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)
        )


class _TextModel(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class CLIPTextEncoder(OpsModule):
    """Encode token embeddings; the token table is looked up outside, by `embed` or on the host."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextModel(config)
        if config.with_projection:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the token table's rows [B,S,D] of token_ids [B,S]; positions are not added."""
        out: Tensor = self.text_model.embeddings.token_embedding(token_ids)
        return out

    def forward(self, inputs_embeds: Tensor, eos_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode.

        Args:
            inputs_embeds: [B,S,D] token embeddings without positions.
            eos_index: [B] int64, position of each row's first end-of-text token.

        Returns:
            hidden_states [L+1,B,S,D]: the input with positions, then each layer's output;
            normed_hidden_states [L+1,B,S,D]: the same after the final LayerNorm;
            pooled [B,P]: the normed last state at eos_index, projected where the model projects.
        """
        positions = self.text_model.embeddings.position_embedding.weight
        length = inputs_embeds.shape[1]
        x = inputs_embeds + positions[:length]
        # Written out, because exporters make the mask of `is_causal` fp32 in any precision.
        mask = torch.full((length, length), -torch.inf, dtype=x.dtype, device=x.device).triu(1)
        states = [x]
        for layer in self.text_model.encoder.layers:
            x = layer(x, mask)
            states.append(x)
        hidden_states = torch.stack(states)
        normed = self.ops.layer_norm(self.text_model.final_layer_norm, hidden_states)
        # A one-hot product instead of indexing: every exporter and runtime has it.
        at_eos = F.one_hot(eos_index, length).to(normed.dtype)  # [B,S]
        pooled = (normed[-1] * at_eos[:, :, None]).sum(dim=1)
        if self.config.with_projection:
            pooled = self.text_projection(pooled)
        return hidden_states, normed, pooled

    def forward_ids(self, token_ids: Tensor, eos_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look up token_ids [B,S] and encode them."""
        return self.forward(self.embed(token_ids), eos_index)
