"""Triton operations: by Triton kernels where these compute a shape, by torch elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.kernels import attention, geglu, group_norm, layer_norm
from sdengine.kernels.dtypes import dtype_name
from sdengine.kernels.launching import compute_capability
from sdengine.kernels.registry import OPS
from sdengine.models.ops import TorchOps


@dataclass(frozen=True)
class Choice:
    """Say what computes an operation of one shape.

    Args:
        op: its name in `sdengine.kernels.registry`.
        shape: its sizes.
        dtype: of its tensors, such as float16.
        reason: why torch computes it; empty where the Triton kernel does.
    """

    op: str
    shape: Any
    dtype: str
    reason: str

    @property
    def replaced(self) -> bool:
        """Whether the Triton kernel computes it."""
        return not self.reason


class TritonOps(TorchOps):
    """Compute with a Triton kernel whatever its `supports` says yes to.

    Maps that lie otherwise than a kernel reads them are copied first, as torch does too.

    Args:
        replace: names of the operations that kernels may compute.

    Raises:
        ConfigError: a name is unknown.
    """

    def __init__(self, replace: Collection[str] = tuple(OPS)) -> None:
        unknown = sorted(set(replace) - set(OPS))
        if unknown:
            raise ConfigError.for_field("replace", ", ".join(unknown), ", ".join(OPS))
        self._replace = frozenset(replace)
        self._choices: dict[tuple[str, Any, str], Choice] = {}

    def report(self) -> tuple[Choice, ...]:
        """Return what computed each operation and shape met up to now, in the order of meeting."""
        return tuple(self._choices.values())

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal_mask: Tensor | None = None
    ) -> Tensor:
        """See `Ops.attention`."""
        causal = causal_mask is not None
        batch, heads, queries, head_dim = q.shape
        shape = attention.AttentionShape(batch, heads, queries, k.shape[2], head_dim, causal)
        if self._replaces(attention.OP, shape, q):
            return attention.attention(q, k, v, scale, causal)
        return super().attention(q, k, v, scale, causal_mask)

    def group_norm(
        self,
        norm: nn.GroupNorm,
        x: Tensor,
        silu: bool = False,
        time_embedding: Tensor | None = None,
    ) -> Tensor:
        """See `Ops.group_norm`."""
        batch, channels, height, width = x.shape
        if not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        shape = group_norm.GroupNormShape(
            batch,
            channels,
            height * width,
            norm.num_groups,
            channels_last=not x.is_contiguous(),
            time_embedding=time_embedding is not None,
        )
        if self._replaces(group_norm.OP, shape, x):
            return group_norm.group_norm_silu(
                x,
                norm.weight,
                norm.bias,
                norm.num_groups,
                norm.eps,
                silu,
                time_embedding=time_embedding,
            )
        return super().group_norm(norm, x, silu, time_embedding)

    def layer_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """See `Ops.layer_norm`."""
        shape = _rows(x)
        if self._replaces(layer_norm.OP, shape, x):
            return layer_norm.layer_norm(x.contiguous(), norm.weight, norm.bias, norm.eps)
        return super().layer_norm(norm, x)

    def add_layer_norm(
        self, norm: nn.LayerNorm, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Ops.add_layer_norm`."""
        if self._replaces(layer_norm.OP, _rows(x, residual=True), x):
            return layer_norm.add_layer_norm(
                x.contiguous(), residual.contiguous(), norm.weight, norm.bias, norm.eps
            )
        return super().add_layer_norm(norm, x, residual)

    def geglu(self, projected: Tensor, inner: int) -> Tensor:
        """See `Ops.geglu`."""
        shape = geglu.GegluShape(projected.numel() // (2 * inner), inner)
        if self._replaces(geglu.OP, shape, projected):
            return geglu.geglu(projected.contiguous())
        return super().geglu(projected, inner)

    def _replaces(self, op: str, shape: Any, tensor: Tensor) -> bool:
        key = op, shape, dtype_name(tensor)
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = Choice(*key, self._reason(*key, tensor))
        return choice.replaced

    def _reason(self, op: str, shape: Any, dtype: str, tensor: Tensor) -> str:
        if op not in self._replace:
            return "it is not among those to replace"
        supported, reason = OPS[op].supports(shape, dtype, compute_capability({"x": tensor}))
        return "" if supported else reason


def _rows(x: Tensor, residual: bool = False) -> layer_norm.LayerNormShape:
    width = x.shape[-1]
    return layer_norm.LayerNormShape(x.numel() // width, width, residual)
