"""Changes of one parameter, and the merging of several into its pristine values.

Differences are never taken out again: a weight is merged anew from what the bundle holds, in fp32
and in one order, so that no order of giving adapters and no earlier adapter leaves a trace.

Source: "DoRA" (Liu et al. 2024), section 4; "IA3" (Liu et al. 2022), section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.products import Parts, Product, Shape
from sdengine.errors import AdapterError
from sdengine.storage.tensor_file import to_float32

Array = NDArray[Any]


class Difference(Protocol):
    """What a change adds to a parameter at strength 1."""

    def of(self, weight: Array) -> Array:
        """Return it in fp32 and of the weight's shape.

        Args:
            weight: the pristine one, fp32.
        """
        ...


@dataclass(frozen=True)
class Magnitude:
    """DoRA's lengths, which rows or columns of the changed weight are brought to.

    Args:
        axis: 0 for a length of each output row, 1 for one of each input column.
        lengths: fp32, as many as that axis is long.
    """

    axis: int
    lengths: Array

    def apply(self, changed: Array) -> Array:
        """Return a weight whose rows or columns have the lengths; those that are 0 stay so."""
        others = tuple(axis for axis in range(changed.ndim) if axis != self.axis)
        norm = np.sqrt(np.sum(np.square(changed), axis=others, keepdims=True))
        wanted = self.lengths.reshape(norm.shape)
        brought: Array = changed * (wanted / np.where(norm > 0, norm, 1).astype(np.float32))
        return brought


@dataclass(frozen=True)
class Produced:
    """A difference computed from an adapter's small tensors.

    Args:
        product: how.
        parts: the tensors.
        scale: that the product is multiplied with.
        shape: of the product, which the weight's differs from by axes of 1 or by what is `padded`.
        magnitude: of DoRA.
        rows: of the product that are this parameter's; None is all of them.
        padded: the weight has more input channels than the product, the others being 0.
    """

    product: Product
    parts: Parts = field(repr=False)
    scale: float
    shape: Shape
    magnitude: Magnitude | None = None
    rows: tuple[int, int] | None = None
    padded: bool = False

    def cut(self, rank: int) -> Produced | None:
        """Return what is left with the first rows of `down`, and columns of `up`, alone.

        None where it is no product of two matrices, or has no more rows. The scale stays that of
        the whole, as for networks that were trained so that their first rows work alone.

        Source: "DyLoRA" (Valipour et al. 2022), section 3.
        """
        up, down = self.parts.get("up"), self.parts.get("down")
        if up is None or down is None or "mid" in self.parts or len(down) <= rank:
            return None
        return replace(self, parts={**self.parts, "up": up[:, :rank], "down": down[:rank]})

    def of(self, weight: Array) -> Array:
        """Return the difference; see `Difference.of`."""
        made: Array = self.product.compute(self.parts, self.shape[2:]).reshape(self.shape)
        if self.rows is not None:
            first, last = self.rows
            made = made[first:last]
        if self.padded:
            missing = weight.shape[1] - made.shape[1]
            made = np.pad(made, ((0, 0), (0, missing), (0, 0), (0, 0)))
        made = made.reshape(weight.shape)
        if self.scale != 1:
            made = made * np.float32(self.scale)
        if self.magnitude is not None:
            made = self.magnitude.apply(weight + made) - weight
        return made


@dataclass(frozen=True)
class Scaled:
    """A difference in proportion to the weight itself.

    Args:
        factors: fp32, of as many axes as the weight, each as long as there or 1.
    """

    factors: Array

    def of(self, weight: Array) -> Array:
        """Return the difference; see `Difference.of`."""
        return weight * self.factors


@dataclass(frozen=True)
class Change:
    """What one adapter changes of one parameter.

    Args:
        adapter: its SHA-256, which decides the order in which changes are added.
        parameter: name in its network.
        kind: of adapter.
        difference: at strength 1.
    """

    adapter: str
    parameter: str
    kind: str
    difference: Difference


Strong = tuple[Change, float]


def merged(weight: Array, changes: Iterable[Strong]) -> Array:
    """Return a weight with changes added, each times its strength.

    The same changes give the same bits in whatever order they come; one of strength 0 is as if it
    were not there, and without others the weight itself is returned.

    Args:
        weight: as the bundle holds it: fp32, fp16 or the bits of bf16.
        changes: with their strengths, of any sign.

    Returns:
        fp32, rounded nowhere between; or the weight as it came where nothing changes it.

    Raises:
        AdapterError: the sum is not finite.
    """
    strong = sorted(
        ((change, strength) for change, strength in changes if strength),
        key=lambda pair: (pair[0].adapter, pair[1]),
    )
    if not strong:
        return weight
    pristine = to_float32(weight)
    total = np.array(pristine)  # a copy
    with np.errstate(over="ignore", invalid="ignore"):  # which is looked for below
        for change, strength in strong:
            total += np.float32(strength) * change.difference.of(pristine)
    if not np.isfinite(total).all():
        raise AdapterError(
            f"{strong[0][0].parameter!r}: with the adapters' differences added it is NaN or "
            "infinite. Give smaller weights."
        )
    return total


def merged_weights(
    weights: Mapping[str, Array], changes: Mapping[str, list[Strong]]
) -> Mapping[str, Array]:
    """Return a network's weights, merged one at a time when they are asked for.

    Args:
        weights: by parameter.
        changes: by parameter.
    """
    return _Merged(weights, changes) if changes else weights


class _Merged(Mapping[str, Array]):
    def __init__(self, weights: Mapping[str, Array], changes: Mapping[str, list[Strong]]) -> None:
        self._weights, self._changes = weights, changes

    def __getitem__(self, name: str) -> Array:
        return merged(self._weights[name], self._changes.get(name, ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
