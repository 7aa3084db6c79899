"""Triton operations: by Triton kernels where these compute a shape, by torch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.backends.torch.variant_timing import VariantChoices
from sdengine.errors import ConfigError
from sdengine.kernels import attention, geglu, group_norm, layer_norm
from sdengine.kernels.dtypes import dtype_name
from sdengine.kernels.launching import compute_capability
from sdengine.kernels.registry import OPS
from sdengine.kernels.variants import Variant
from sdengine.models.ops import TorchOps


@dataclass(frozen=True)
class Choice:
    """Say what computes an operation of one shape.

    Args:
        op: its name in `sdengine.kernels.registry`.
        shape: its sizes.
        dtype: of its tensors, such as float16.
        reason: why torch computes it; empty where the Triton kernel does.
        variant: of the kernel; empty where torch computes it.
    """

    op: str
    shape: Any
    dtype: str
    reason: str
    variant: str = ""

    @property
    def replaced(self) -> bool:
        """Whether the Triton kernel computes it."""
        return not self.reason


class TritonOps(TorchOps):
    """Compute with a Triton kernel whatever its `supports` says yes to.

    Maps that lie otherwise than a kernel reads them are copied first, as torch does too.

    Args:
        replace: names of the operations that kernels may compute.
        choices: which variant is fastest; None for the presumably fastest.

    Raises:
        ConfigError: a name is unknown.
    """

    def __init__(
        self, replace: Collection[str] = tuple(OPS), choices: VariantChoices | None = None
    ) -> None:
        unknown = sorted(set(replace) - set(OPS))
        if unknown:
            raise ConfigError.for_field("replace", ", ".join(unknown), ", ".join(OPS))
        self._replace = frozenset(replace)
        self._measured = choices
        self._choices: dict[tuple[str, Any, str], tuple[Choice, Variant | None]] = {}

    def report(self) -> tuple[Choice, ...]:
        """Return what computed each operation and shape met up to now, in the order of meeting."""
        return tuple(choice for choice, _ in self._choices.values())

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal_mask: Tensor | None = None
    ) -> Tensor:
        """See `Ops.attention`."""
        causal = causal_mask is not None
        batch, heads, queries, head_dim = q.shape
        shape = attention.AttentionShape(batch, heads, queries, k.shape[2], head_dim, causal)

        def run(variant: Variant) -> Tensor:
            return attention.attention(q, k, v, scale, causal, variant=variant)

        variant = self._variant(attention.OP, shape, q, run)
        if variant is not None:
            return run(variant)
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
        weights = (norm.weight, norm.bias, norm.num_groups, norm.eps)

        def run(variant: Variant) -> Tensor:
            return group_norm.group_norm_silu(
                x, *weights, silu, time_embedding=time_embedding, variant=variant
            )

        variant = self._variant(group_norm.OP, shape, x, run)
        if variant is not None:
            return run(variant)
        return super().group_norm(norm, x, silu, time_embedding)

    def layer_norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """See `Ops.layer_norm`."""
        rows = x.contiguous()

        def run(variant: Variant) -> Tensor:
            return layer_norm.layer_norm(rows, norm.weight, norm.bias, norm.eps, variant=variant)

        variant = self._variant(layer_norm.OP, _rows(x), x, run)
        return super().layer_norm(norm, x) if variant is None else run(variant)

    def add_layer_norm(
        self, norm: nn.LayerNorm, x: Tensor, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Ops.add_layer_norm`."""
        rows, added = x.contiguous(), residual.contiguous()

        def run(variant: Variant) -> tuple[Tensor, Tensor]:
            return layer_norm.add_layer_norm(
                rows, added, norm.weight, norm.bias, norm.eps, variant=variant
            )

        variant = self._variant(layer_norm.OP, _rows(x, residual=True), x, run)
        return super().add_layer_norm(norm, x, residual) if variant is None else run(variant)

    def geglu(self, projected: Tensor, inner: int) -> Tensor:
        """See `Ops.geglu`."""
        shape = geglu.GegluShape(projected.numel() // (2 * inner), inner)
        both = projected.contiguous()

        def run(variant: Variant) -> Tensor:
            return geglu.geglu(both, variant=variant)

        variant = self._variant(geglu.OP, shape, projected, run)
        return super().geglu(projected, inner) if variant is None else run(variant)

    def _variant(
        self, op: str, shape: Any, tensor: Tensor, run: Callable[[Variant], object]
    ) -> Variant | None:
        """Return what computes a shape of a kernel; None where torch does."""
        key = op, shape, dtype_name(tensor)
        if key not in self._choices:
            reason, variant = self._decide(*key, tensor, run)
            choice = Choice(*key, reason, "" if variant is None else variant.name)
            self._choices[key] = choice, variant
        return self._choices[key][1]

    def _decide(
        self, op: str, shape: Any, dtype: str, tensor: Tensor, run: Callable[[Variant], object]
    ) -> tuple[str, Variant | None]:
        if op not in self._replace:
            return "it is not among those to replace", None
        cc = compute_capability({"x": tensor})
        supported, reason = OPS[op].supports(shape, dtype, cc)
        if not supported:
            return reason, None
        variants = OPS[op].variants(shape, dtype, cc)
        if self._measured is None:
            return "", variants[0]
        return "", self._measured.choose(f"{op} {dtype} {shape}", variants, run)


def _rows(x: Tensor, residual: bool = False) -> layer_norm.LayerNormShape:
    width = x.shape[-1]
    return layer_norm.LayerNormShape(x.numel() // width, width, residual)
