"""Triton model: a network changed, once it has its weights, into what the GPU computes fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sdengine.models.attention import Attention, BasicTransformerBlock
from sdengine.models.layers import ResnetBlock2D
from sdengine.models.ops import Ops, OpsModule, set_ops
from sdengine.models.unet import UNet2DConditionModel


class JoinedSelfAttention(OpsModule):
    """Attention of tokens over themselves whose queries, keys and values are one product.

    Its output is what `Attention` gives up to rounding; attention reads the parts where they lie.

    Args:
        attention: whose weights it takes.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = (attention.num_heads, attention.head_dim)
        self.scale = attention.scale
        self.to_qkv = _joined(attention.to_q, attention.to_k, attention.to_v)
        self.to_out = attention.to_out

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B,S,C] for x [B,S,C], which the context is too."""
        q, k, v = self.to_qkv(x).unflatten(2, (3, *self.heads)).permute(2, 0, 3, 1, 4)
        out = self.ops.attention(q, k, v, self.scale)
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class KeptText:
    """Keys and values of the text, which the blocks take in the place of a context.

    Args:
        keys_values: [B,Sk,2C], as `JoinedCrossAttention.to_kv` gives them.
    """

    def __init__(self, keys_values: Mapping[nn.Module, Tensor]) -> None:
        self._keys_values = keys_values

    def of(self, attention: nn.Module) -> Tensor:
        """Return those of one attention [B,Sk,2C]."""
        return self._keys_values[attention]


class KeptTime:
    """What the timestep moves residual blocks by, which they take in the place of an embedding.

    Args:
        moves: [B,C] of each block.
    """

    def __init__(self, moves: Mapping[nn.Module, Tensor]) -> None:
        self._moves = moves

    def of(self, block: nn.Module) -> Tensor:
        """Return what one block is moved by [B,C]."""
        return self._moves[block]


class JoinedCrossAttention(OpsModule):
    """Attention of tokens over a context whose keys and values are one product.

    Args:
        attention: whose weights it takes.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = (attention.num_heads, attention.head_dim)
        self.scale = attention.scale
        self.to_q = attention.to_q
        self.to_kv = _joined(attention.to_k, attention.to_v)
        self.to_out = attention.to_out

    def forward(self, x: Tensor, context: Tensor | KeptText) -> Tensor:
        """Return [B,S,C] for x [B,S,C] and context [B,Sk,Cc]."""
        q = self.to_q(x).unflatten(2, self.heads).transpose(1, 2)  # [B,heads,S,d]
        joined = context.of(self) if isinstance(context, KeptText) else self.to_kv(context)
        k, v = joined.unflatten(2, (2, *self.heads)).permute(2, 0, 3, 1, 4)
        out = self.ops.attention(q, k, v, self.scale)
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class TimedResnetBlock(ResnetBlock2D):
    """A residual block that also takes what it is moved by as it was kept."""

    def project_time(self, temb: Tensor | KeptTime) -> Tensor:
        """Return [B,C], kept or computed."""
        return temb.of(self) if isinstance(temb, KeptTime) else super().project_time(temb)


class SplitUNet:
    """A U-Net as two functions: what a whole trajectory has in common, and a step.

    Args:
        model: that `prepare` changed.
        added: names of what it reads beside sample, timestep and text, in their order.
    """

    def __init__(self, model: UNet2DConditionModel, added: Sequence[str]) -> None:
        self._model = model
        self._added = added
        self._resnets = [m for m in model.modules() if isinstance(m, TimedResnetBlock)]
        self._attentions = [m for m in model.modules() if isinstance(m, JoinedCrossAttention)]

    def common(self, timesteps: Tensor, context: Tensor, *added: Tensor) -> tuple[Tensor, ...]:
        """Compute what no step's latents change.

        Args:
            timesteps: [K], of all evaluations.
            context: [B,Sk,Cc] text embeddings.
            added: [B,...] in the order of their names.

        Returns:
            What residual blocks are moved by at each evaluation, one behind the other [K,...], and
            keys and values of the text [B,Sk,2C] for each attention.
        """
        count, rows = len(timesteps), len(context)
        given = {name: x.repeat(count, 1) for name, x in zip(self._added, added, strict=True)}
        temb = self._model.embed_time(
            timesteps.repeat_interleave(rows),
            context.dtype,
            given.get("text_embeds"),
            given.get("time_ids"),
            given.get("timestep_cond"),
        )
        moves = [block.project_time(temb).reshape(count, -1) for block in self._resnets]
        return torch.cat(moves, dim=1), *(one.to_kv(context) for one in self._attentions)

    def step(self, sample: Tensor, row: Tensor, moves: Tensor, *keys_values: Tensor) -> Tensor:
        """Predict.

        Args:
            sample: [B,C,h,w] scaled latents.
            row: [1] number of the evaluation, read when this runs.
            moves, keys_values: of `common`.

        Returns:
            [B,C,h,w].
        """
        rows = len(sample)
        sizes = [rows * block.conv1.out_channels for block in self._resnets]
        parts = moves.index_select(0, row)[0].split_with_sizes(sizes)
        time = KeptTime({b: p.view(rows, -1) for b, p in zip(self._resnets, parts, strict=True)})
        text = KeptText(dict(zip(self._attentions, keys_values, strict=True)))
        maps = sample.contiguous(memory_format=torch.channels_last)
        # The blocks hand both on as they are, to modules that this file has put in.
        return self._model.predict(maps, cast("Tensor", time), cast("Tensor", text))


def prepare(model: nn.Module, ops: Ops) -> None:
    """Join projections, lay convolutions out channels last, and let a table compute operations."""
    for block in model.modules():
        if isinstance(block, BasicTransformerBlock):
            block.add_module("attn1", JoinedSelfAttention(block.attn1))
            block.add_module("attn2", JoinedCrossAttention(block.attn2))
        elif isinstance(block, ResnetBlock2D) and hasattr(block, "time_emb_proj"):
            block.__class__ = TimedResnetBlock  # which has no state of its own
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    set_ops(model, ops)


def _joined(*layers: nn.Linear) -> nn.Linear:
    """Return one layer whose outputs are those of layers without bias, one behind the other."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    with torch.device("meta"):
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    joined.weight = nn.Parameter(weight, requires_grad=False)
    return joined
