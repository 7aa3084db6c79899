"""Changes of one parameter, and the merging of several into its pristine values.

Merged is W + s1 * D1 + s2 * D2 ..., in fp32 and from left to right, each operation rounded, in the
order of the adapters' hashes; D of a plain LoRA is (up down) * scale, whose product is added up in
the order of its rank. What is computed in is rounded once from that.

Differences are never taken out again: a weight is merged anew from what the bundle holds, in fp32
and in one order, so that no order of giving adapters and no earlier adapter leaves a trace.

Source: "DoRA" (Liu et al. 2024), section 4; "IA3" (Liu et al. 2022), section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.products import Parts, Product, Shape, low_rank
from sdengine.errors import AdapterError
from sdengine.storage.tensor_file import to_float32

Array = NDArray[Any]


# Up [rows,r], down [r,k], and what the product is multiplied with; or a whole matrix [rows,k]. Then
# the strength.
Term = tuple[Array, Array, float, float] | tuple[Array, float]
Factors = tuple[Array, Array, float]


class Difference(Protocol):
    """What a change adds to a parameter at strength 1."""

    def of(self, weight: Array) -> Array:
        """Return it in fp32 and of the weight's shape.

        Args:
            weight: the pristine one, fp32.
        """
        ...

    def factors(self) -> Factors | None:
        """Return what it is the product of, where it is nothing else."""
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
        return replace(
            self,
            parts={**self.parts, "up": np.ascontiguousarray(up[:, :rank]), "down": down[:rank]},
        )

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

    def factors(self) -> Factors | None:
        """Return what it is the product of; see `Difference.factors`."""
        both = low_rank(self.product, self.parts)
        if both is None or self.magnitude is not None or self.padded:
            return None
        up, down = both
        return (up if self.rows is None else up[slice(*self.rows)]), down, self.scale


@dataclass(frozen=True)
class Scaled:
    """A difference in proportion to the weight itself.

    Args:
        by: fp32, of as many axes as the weight, each as long as there or 1.
    """

    by: Array

    def of(self, weight: Array) -> Array:
        """Return the difference; see `Difference.of`."""
        return weight * self.by

    def factors(self) -> Factors | None:
        """Return None: it is no product."""
        return None


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
    strong = in_order(changes)
    if not strong:
        return weight
    pristine = to_float32(weight)
    total = np.array(pristine)  # a copy
    with np.errstate(over="ignore", invalid="ignore"):  # which is looked for below
        for change, strength in strong:
            total += np.float32(strength) * change.difference.of(pristine)
    if not np.isfinite(total).all():
        raise not_finite(strong[0][0].parameter)
    return total


def in_order(changes: Iterable[Strong]) -> list[Strong]:
    """Return the changes in the order in which they are added, without those of strength 0."""
    strong = [(change, strength) for change, strength in changes if strength]
    return sorted(strong, key=lambda pair: (pair[0].adapter, pair[1]))


def terms(weight: Array, changes: Iterable[Strong]) -> list[Term]:
    """Return what is added to a weight, for `_native.pack`, which gives the bits of `merged`.

    Args:
        weight: as the bundle holds it.
        changes: with their strengths.
    """
    found: list[Term] = []
    for change, strength in in_order(changes):
        factors = change.difference.factors()
        if factors is None:
            with np.errstate(over="ignore", invalid="ignore"):  # which is looked for when packed
                whole = change.difference.of(to_float32(weight))
            found.append((np.ascontiguousarray(whole.reshape(len(whole), -1)), strength))
        else:
            found.append((*factors, strength))
    return found


def not_finite(parameter: str) -> AdapterError:
    """Return the error of a sum that is NaN or infinite."""
    return AdapterError(
        f"{parameter!r}: with the adapters' differences added it is NaN or infinite. Give smaller "
        "weights."
    )
