"""Triton model: a network changed, once it has its weights, into what the GPU computes fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdengine.models.attention import Attention, BasicTransformerBlock
from sdengine.models.ops import Ops, OpsModule, set_ops


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

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B,S,C] for x [B,S,C] and context [B,Sk,Cc]."""
        q = self.to_q(x).unflatten(2, self.heads).transpose(1, 2)  # [B,heads,S,d]
        k, v = self.to_kv(context).unflatten(2, (2, *self.heads)).permute(2, 0, 3, 1, 4)
        out = self.ops.attention(q, k, v, self.scale)
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return result


def prepare(model: nn.Module, ops: Ops) -> None:
    """Join projections, lay convolutions out channels last, and let a table compute operations."""
    for block in model.modules():
        if isinstance(block, BasicTransformerBlock):
            block.add_module("attn1", JoinedSelfAttention(block.attn1))
            block.add_module("attn2", JoinedCrossAttention(block.attn2))
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
