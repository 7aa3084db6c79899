"""Groups of an adapter's tensors: all parts of one module's change, and what they amount to.

Source: the layouts that LyCORIS, kohya's sd-scripts and PEFT write. LyCORIS's newer files give a
DoRA's lengths by output row, its older ones by input column: the tensor's own shape tells which.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sdengine.adapters.changes import Change, Difference, Magnitude, Produced, Scaled
from sdengine.adapters.file import Array, scalar
from sdengine.adapters.key_names import Target
from sdengine.adapters.modules import Module, Shape
from sdengine.adapters.peft_config import PeftConfig, json_object
from sdengine.adapters.products import OF_MATRICES, OF_VECTORS, Product, UnfittingError
from sdengine.storage.tensor_file import to_float32

_LATENT_CHANNELS = 4
# Trainers ask for ranks like ten thousand millions to have whole matrices.
_WHOLE_MATRIX = 1e6
_NO_SCALE = ("full difference", "difference of a norm")
_IA3 = {"weight", "on_input", "ia3_l"}


@dataclass
class Group:
    """The tensors of one stem, by what they are parts of, with their keys."""

    stem: str
    parts: dict[str, Array] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def first_key(self) -> str:
        """A key to name the group by."""
        return next(iter(self.keys.values()))

    @property
    def product(self) -> Product | None:
        """What its matrix is computed by; None where it has none.

        Raises:
            UnfittingError: its parts are of several kinds.
        """
        found = [product for product in OF_MATRICES if product.parts & self.parts.keys()]
        if len(found) > 1:
            raise UnfittingError(f"its parts are of {' and '.join(p.name for p in found)}")
        return found[0] if found else None

    def fits(self, target: Target) -> bool:
        """Say whether its matrix has the shape of the target's."""
        weight = _weight_shape(target)
        try:
            product = self.product
            if product is None or weight is None:
                return False
            return _without_ones(product.shape(self.parts, weight[2:])) == _without_ones(weight)
        except UnfittingError:
            return False


def changes_of(
    group: Group,
    target: Target,
    sha256: str,
    configs: Mapping[str, PeftConfig],
    metadata: Mapping[str, str],
) -> list[tuple[str, Change]]:
    """Return what a group changes, with the networks.

    Args:
        group: of the file.
        target: that its stem stands for.
        sha256: of the adapter.
        configs: PEFT's settings.
        metadata: of the file.

    Raises:
        UnfittingError: a part is missing, superfluous, or does not fit the target.
    """
    left = set(group.parts)
    made: list[tuple[str, Change]] = []
    scale = 1.0
    if (product := group.product) is not None:
        left -= product.parts
        shape, padded = _checked_shape(group, product, target)
        scale = _scale(group, product, target, configs, metadata)
        for module, difference in _of_matrix(group, product, target, shape, padded, scale):
            change = Change(sha256, f"{module.path}.weight", _name(group, product), difference)
            made.append((module.network, change))
        left -= {"alpha", "dora_scale", "magnitude"}
    if left & _IA3:
        made += _of_ia3(group, target, sha256)
        left -= _IA3
    for part in sorted(left & {*OF_VECTORS, "up_bias"}):
        made += _of_vector(group, part, target, sha256, scale)
        left.discard(part)
    if not made or left:
        names = ", ".join(repr(group.keys[part]) for part in sorted(left)[:3])
        raise UnfittingError(f"{names or 'what is there'} is no whole change of a known kind")
    return made


def _checked_shape(group: Group, product: Product, target: Target) -> tuple[Shape, bool]:
    """Return the shape of a product that fits, and whether it is to be padded."""
    weight = _weight_shape(target)
    if weight is None or (len(weight) < 2 and product.name != "full difference"):
        raise UnfittingError(f"{target[0].path} has no matrix that could be changed")
    shape = product.shape(group.parts, weight[2:])
    padded = _is_padded(shape, weight, target)
    if not padded and _without_ones(shape) != _without_ones(weight):
        raise UnfittingError(
            f"{product.name} of {list(shape)}, but {target[0].network} {target[0].path} is "
            f"{list(weight)}"
        )
    return shape, padded


def _of_matrix(
    group: Group, product: Product, target: Target, shape: Shape, padded: bool, scale: float
) -> Iterator[tuple[Module, Difference]]:
    magnitude = _magnitude(group, _weight_shape(target) or (), fused=len(target) > 1 or padded)
    first = 0
    for module in target:
        assert module.weight is not None
        last = first + module.weight[0]
        rows = (first, last) if len(target) > 1 else None
        lengths = magnitude
        if magnitude is not None and rows is not None:
            lengths = Magnitude(0, magnitude.lengths[first:last])
        yield module, Produced(product, group.parts, scale, shape, lengths, rows, padded)
        first = last


def _is_padded(shape: Shape, weight: Shape, target: Target) -> bool:
    """Say whether it is a change of a first convolution that reads more than the latents here."""
    return (
        target[0].path == "conv_in"
        and len(shape) == len(weight) == 4
        and shape[1] == _LATENT_CHANNELS < weight[1]
        and (shape[0], *shape[2:]) == (weight[0], *weight[2:])
    )


def _magnitude(group: Group, weight: Shape, fused: bool) -> Magnitude | None:
    parts = group.parts.keys() & {"magnitude", "dora_scale"}
    if not parts:
        return None
    if len(parts) > 1:
        raise UnfittingError("it has the lengths of DoRA twice")
    (part,) = parts
    found = group.parts[part]
    if len(weight) < 2 or found.ndim < 1:
        raise UnfittingError(f"{group.keys[part]!r} is {list(found.shape)}")
    rows, columns = weight[0], weight[1]
    by_row = found.ndim == 1 or found.shape[0] == found.size or part == "magnitude"
    axis = 0 if by_row else 1
    at_axis = found.ndim > 1 and found.shape[1] == found.size
    if found.size != (rows if axis == 0 else columns) or not (by_row or at_axis):
        raise UnfittingError(
            f"{group.keys[part]!r} is {list(found.shape)}; expected a length for each of {rows} "
            f"rows or {columns} columns"
        )
    if fused and axis == 1:
        raise UnfittingError("DoRA's lengths of columns cannot be split or padded")
    return Magnitude(axis, to_float32(found).reshape(-1))


def _of_ia3(group: Group, target: Target, sha256: str) -> Iterator[tuple[str, Change]]:
    """Yield changes in proportion: LyCORIS stores the factor less 1, PEFT the factor."""
    if "ia3_l" in group.parts:
        factor = to_float32(group.parts["ia3_l"]) - 1
        by_column = factor.ndim == 2 and factor.shape[0] == 1
    elif {"weight", "on_input"} <= group.parts.keys():
        factor = to_float32(group.parts["weight"])
        try:
            by_column = bool(scalar(group.parts["on_input"]))
        except ValueError as error:
            raise UnfittingError(f"{group.keys['on_input']!r} {error}") from None
    else:
        key = next(group.keys[part] for part in ("weight", "on_input") if part in group.keys)
        raise UnfittingError(f"{key!r} is a whole weight, not a change of one")
    (module,) = target if len(target) == 1 else (None,)
    if module is None or module.weight is None or len(module.weight) < 2:
        raise UnfittingError("IA3 needs one matrix")
    axis = 1 if by_column else 0
    if factor.size != module.weight[axis] or factor.ndim > 2:
        raise UnfittingError(
            f"IA3 of {list(factor.shape)}, but {module.network} {module.path} is "
            f"{list(module.weight)}"
        )
    shape = [1] * len(module.weight)
    shape[axis] = -1
    change = Change(sha256, f"{module.path}.weight", "IA3", Scaled(factor.reshape(shape)))
    yield module.network, change
    if "ia3_l" in group.parts and not by_column and module.bias is not None:
        difference = Scaled(factor.reshape(-1))
        yield module.network, Change(sha256, f"{module.path}.bias", "IA3", difference)


def _of_vector(
    group: Group, part: str, target: Target, sha256: str, scale: float
) -> Iterator[tuple[str, Change]]:
    of_weight = part == "w_norm"
    product = OF_VECTORS["diff_b" if part == "up_bias" else part]
    parts = {next(iter(product.parts)): group.parts[part]}
    shapes = [module.weight if of_weight else module.bias for module in target]
    if any(shape is None or len(shape) != 1 for shape in shapes):
        what = "norm's weight" if of_weight else "bias"
        raise UnfittingError(f"{group.keys[part]!r}: {target[0].path} has no {what}")
    found = group.parts[part].shape
    lengths = [shape[0] for shape in shapes if shape is not None]
    if found != (sum(lengths),):
        raise UnfittingError(
            f"{group.keys[part]!r} is {list(found)}, but {target[0].network} {target[0].path} has "
            f"{sum(lengths)}"
        )
    first = 0
    for module, length in zip(target, lengths, strict=True):
        rows = (first, first + length) if len(target) > 1 else None
        factor = scale if part == "up_bias" else 1.0
        difference = Produced(product, parts, factor, found, rows=rows)
        name = f"{module.path}.{'weight' if of_weight else 'bias'}"
        yield module.network, Change(sha256, name, product.name, difference)
        first += length


def _scale(
    group: Group,
    product: Product,
    target: Target,
    configs: Mapping[str, PeftConfig],
    metadata: Mapping[str, str],
) -> float:
    """Return what the product is multiplied with: alpha by rank, and 1 without an alpha."""
    if product.name in _NO_SCALE:
        return 1.0
    rank = product.rank(group.parts)
    if "alpha" not in group.parts:
        config = configs.get(target[0].network, configs.get(""))
        return 1.0 if config is None else config.scale(target[0].path, rank)
    try:
        alpha = scalar(group.parts["alpha"])
    except ValueError as error:
        raise UnfittingError(f"{group.keys['alpha']!r} {error}") from None
    if rank is None:
        rank = _trained_rank(metadata, target)
    return alpha / rank if alpha and rank else 1.0


def _trained_rank(metadata: Mapping[str, str], target: Target) -> int | None:
    """Return the rank that a file of whole LoKr factors was trained at, as its metadata has it.

    Newer files have an alpha that is equal to it, so that nothing is scaled; older ones were
    trained with the quotient.
    """
    told: object = metadata.get("ss_network_dim")
    shape = target[0].weight
    if shape is not None and math.prod(shape[2:]) > 1:
        with contextlib.suppress(ValueError):
            told = json_object(metadata.get("ss_network_args", ""), "").get("conv_dim", told)
    try:
        rank = int(str(told)[:20])
    except ValueError:
        return None
    return rank if 0 < rank < _WHOLE_MATRIX else None


def _name(group: Group, product: Product) -> str:
    if group.parts.keys() & {"magnitude", "dora_scale"}:
        return f"DoRA ({product.name})"
    conv = product.name == "LoRA" and group.parts["down"].ndim == 4
    return "LoCon" if conv and group.parts["down"].shape[2:] != (1, 1) else product.name


def _weight_shape(target: Target) -> Shape | None:
    shapes = [module.weight for module in target]
    if any(shape is None for shape in shapes):
        return None
    if len(shapes) == 1:
        return shapes[0]
    whole = [shape for shape in shapes if shape is not None]
    if any(shape[1:] != whole[0][1:] for shape in whole):
        return None
    return (sum(shape[0] for shape in whole), *whole[0][1:])


def _without_ones(shape: Shape) -> Shape:
    """Drop the height and width of a 1x1 kernel, which is a matrix all the same."""
    return shape[:2] if shape[2:] == (1, 1) else shape
