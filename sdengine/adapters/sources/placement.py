"""Placement: which tensors of which files the weights of one network are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from sdengine.adapters.sources.parameters import Parameters
from sdengine.adapters.sources.renaming import Piece, Renamer
from sdengine.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self

Shapes = Mapping[str, tuple[int, ...]]
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
_FLOATS = ("F16", "BF16", "F32", "F64", *EIGHT_BITS)
# What the number is called that a weight in 8 bits is multiplied with, in place of "weight".
_SCALES = ("scale_weight", "weight_scale")
File = TypeVar("File", bound=Parameters)


class Placement(Generic[File]):
    """Where the tensors of one network lie, in one file or several; nothing is read.

    Args:
        files: tensor files of any known format.
        rename: gives a stored tensor's name in the network, without the prefix.
        prefix: of the network's tensors, where the files hold others too.
        open_file: opens one of them.

    Attributes:
        opened: the files, in their order.
        left_out: what each of the others is, as far as it is the network's business.
        elsewhere: the tensors that do not begin with the prefix.

    Raises:
        CheckpointError: a file is damaged, or holds a tensor twice.
    """

    def __init__(
        self,
        files: Sequence[Path],
        rename: Renamer,
        prefix: str,
        open_file: Callable[[Path], File],
    ) -> None:
        self.files = list(files)
        self.opened: list[File] = []
        self._places: dict[str, tuple[File, str, Piece]] = {}
        self._scales: dict[tuple[Path, str], str] = {}
        self.left_out: dict[tuple[Path, str], str] = {}
        self.elsewhere: set[tuple[Path, str]] = set()
        for path in self.files:
            handle = open_file(path)
            self.opened.append(handle)
            self.left_out |= {(path, name): what for name, what in handle.others.items()}
            for stored in self._parameters(handle, prefix):
                pieces = _pieces(rename(stored.removeprefix(prefix)))
                if not pieces:
                    self.left_out[path, stored] = "not used by a network of this configuration"
                for piece in pieces:
                    self._place(handle, stored, piece)

    @property
    def used(self) -> set[tuple[Path, str]]:
        """Path and name of each stored tensor that the network has."""
        places = {(handle.path, stored) for handle, stored, _ in self._places.values()}
        return places | {(path, scale) for (path, _), scale in self._scales.items()}

    def _parameters(self, handle: File, prefix: str) -> Iterator[str]:
        """Yield the network's tensors; take the scales among them aside."""
        names = set(handle.names())
        for stored in handle.names():
            stem, _, last = stored.rpartition(".")
            weight = f"{stem}.weight"
            if not stored.startswith(prefix):
                self.elsewhere.add((handle.path, stored))
            elif last in _SCALES and weight in names:
                self._scales[handle.path, weight] = stored
            else:
                yield stored

    def _place(self, handle: File, stored: str, piece: Piece) -> None:
        known = self._places.get(piece.name)
        if known is not None:
            other, before, _ = known
            older = "an older name of a tensor that is there too"
            if other.path == handle.path and before.endswith(piece.name):
                self.left_out[handle.path, stored] = older
                return
            if other.path != handle.path or not stored.endswith(piece.name):
                raise CheckpointError(f"{handle.path}: tensor {piece.name!r} is there twice.")
            self.left_out[handle.path, before] = older
        self._places[piece.name] = (handle, stored, piece)

    def with_changes(self, changes: Self) -> Self:
        """Return these tensors with others in place of those of the same names."""
        joined = copy.copy(self)
        joined.files = [*self.files, *changes.files]
        joined._places = {**self._places, **changes._places}
        joined._scales = {**self._scales, **changes._scales}
        joined.left_out = {**self.left_out, **changes.left_out}
        joined.elsewhere = self.elsewhere | changes.elsewhere
        return joined

    def names(self) -> list[str]:
        """Return the names of all tensors, as the network calls them."""
        return list(self._places)

    def check(self, expected: Shapes) -> None:
        """Compare the tensors with those that a network has, by name and shape.

        Raises:
            CheckpointError: a tensor is missing, superfluous, of another shape or no float.
        """
        missing = sorted(expected.keys() - self._places.keys())
        if missing:
            raise CheckpointError(
                f"{self._where()}: {len(missing)} of {len(expected)} tensors are missing, first "
                f"{missing[0]!r} {list(expected[missing[0]])}. The file is not of this network, or "
                "its configuration is of another."
            )
        extra = sorted(self._places.keys() - expected.keys())
        if extra:
            raise CheckpointError(
                f"{self._where()}: {len(extra)} tensors are unknown to the network that its "
                f"configuration describes, first {extra[0][:120]!r}."
            )
        for name, shape in expected.items():
            self._check_tensor(name, shape)

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        handle, stored, piece = self._places[name]
        stored_shape = handle.shape(stored)
        found = stored_shape[::-1] if piece.transposed else stored_shape
        if piece.parts > 1:
            whole = bool(found) and found[0] % piece.parts == 0
            found = (found[0] // piece.parts, *found[1:]) if whole else ()
        # A 1x1 convolution and a linear layer hold the same matrix.
        if _without_ones(found) != _without_ones(shape):
            raise CheckpointError(
                f"{handle.path}: tensor {name!r} has shape {list(found)}; its configuration asks "
                f"for {list(shape)}."
            )
        if handle.dtype(stored) not in _FLOATS:
            raise CheckpointError(
                f"{handle.path}: tensor {name!r} is {handle.dtype(stored)}; expected one of "
                f"{', '.join(_FLOATS)}."
            )
        scale = self._scales.get((handle.path, stored))
        if scale is not None:
            self._check_scale(handle, scale, stored_shape)

    def _check_scale(self, handle: File, scale: str, shape: tuple[int, ...]) -> None:
        count = math.prod(handle.shape(scale))
        if count not in (1, shape[0] if shape else 1) or handle.dtype(scale) not in _FLOATS:
            raise CheckpointError(
                f"{handle.path}: {scale[:120]!r} is {handle.dtype(scale)} "
                f"{list(handle.shape(scale))}; expected one float, or one for each of the rows of "
                f"{list(shape)}."
            )

    def _where(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of what a tensor is made from, turned as the network has it."""
        handle, stored, piece = self._places[name]
        shape = handle.shape(stored)
        return shape[::-1] if piece.transposed else shape


def _pieces(renamed: str | Sequence[Piece] | None) -> Sequence[Piece]:
    if renamed is None:
        return ()
    return (Piece(renamed),) if isinstance(renamed, str) else renamed


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the height and width of a 1x1 kernel."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
