"""Weights of one network: checked against the network before anything is allocated."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from sdengine.checkpoints.formats.tensor_files import TensorFile
from sdengine.checkpoints.no_parameters import open_parameters
from sdengine.errors import CheckpointError
from sdengine.models.dtypes import SAFETENSORS_DTYPES
from sdengine.storage.tensor_file import write_tensors

Shapes = Mapping[str, tuple[int, ...]]
_EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
_FLOATS = ("F16", "BF16", "F32", "F64", *_EIGHT_BITS)
# What the number is called that a weight in 8 bits is multiplied with, in place of "weight".
_SCALES = ("scale_weight", "weight_scale")
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """Say what of a stored tensor a network's tensor is.

    Args:
        name: in the network.
        part, parts: the rows to take, where a file fuses several matrices into one.
        transposed: the file holds the matrix the other way round.
    """

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


# Gives what a stored tensor is in the network: its name, pieces, or None to leave it out.
Renamer = Callable[[str], "str | Sequence[Piece] | None"]


class Weights:
    """The tensors of one network, in one file or several; opened lazily, never executed.

    Args:
        files: tensor files of any known format.
        rename: gives a stored tensor's name in the network, without the prefix.
        prefix: of the network's tensors, where the files hold others too.

    Attributes:
        left_out: what each of the others is, as far as it is the network's business.
        elsewhere: the tensors that do not begin with the prefix.
        derive: gives what the network has in the place of a tensor that is read, by its name; None
            where it has that tensor.

    Raises:
        CheckpointError: a file is damaged, or holds a tensor twice.
    """

    def __init__(self, files: Sequence[Path], rename: Renamer, prefix: str = "") -> None:
        self.files = list(files)
        self.derive: Callable[[str, torch.Tensor], torch.Tensor] | None = None
        self._places: dict[str, tuple[TensorFile, str, Piece]] = {}
        self._scales: dict[tuple[Path, str], str] = {}
        self.left_out: dict[tuple[Path, str], str] = {}
        self.elsewhere: set[tuple[Path, str]] = set()
        for path in self.files:
            handle = open_parameters(path)
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

    def _parameters(self, handle: TensorFile, prefix: str) -> Iterator[str]:
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

    def _place(self, handle: TensorFile, stored: str, piece: Piece) -> None:
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

    def with_changes(self, changes: Weights) -> Weights:
        """Return these weights with the tensors of others in place of those of the same names."""
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

    def load_into(
        self, make: Callable[[], nn.Module], dtype: torch.dtype | None, device: str = "cpu"
    ) -> nn.Module:
        """Build a network and give it these weights.

        Args:
            make: builds the network; called on the meta device, so it allocates nothing.
            dtype: what the weights are converted to, or None to leave them as stored; those that
                need no conversion stay mapped from the file and are not copied.
            device: where they go.

        Returns:
            The network in evaluation mode, without gradients.

        Raises:
            CheckpointError: a tensor is missing, superfluous, of another shape or no float.
        """
        with torch.device("meta"):
            module = make()
        expected = shapes_of(module)
        state = {
            name: tensor.to(device=device, dtype=dtype or tensor.dtype)
            for name, tensor in self.tensors(expected)
        }
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False).eval()

    def tensors(self, expected: Shapes) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors in the order of their expected shapes; everything is checked first.

        They are of the type that they are stored in, but for those in 8 bits, which come as what
        they stand for: in fp16, which holds each of them, or times their scale in fp32.

        Raises:
            CheckpointError: a tensor is missing, superfluous, of another shape or no float.
        """
        self._check(expected)
        for name, shape in expected.items():
            handle, stored, piece = self._places[name]
            tensor = self._read(handle, stored)
            if piece.transposed:
                tensor = tensor.t()
            rows = tensor.shape[0] // piece.parts if piece.parts > 1 else 0
            if rows:
                tensor = tensor[piece.part * rows : (piece.part + 1) * rows]
            tensor = tensor.reshape(shape)
            yield name, tensor if self.derive is None else self.derive(name, tensor)

    def _read(self, handle: TensorFile, stored: str) -> torch.Tensor:
        tensor = handle.read(stored)
        if handle.dtype(stored) in _EIGHT_BITS:
            tensor = tensor.to(torch.float16)
        scale = self._scales.get((handle.path, stored))
        if scale is None:
            return tensor
        factors = handle.read(scale).float()  # one, or one for each row
        return tensor.float() * factors.reshape(-1, *[1] * (tensor.ndim - 1))

    def sha256(self, expected: Shapes, config: str) -> str:
        """Identify a network's content, whatever the layout of its files: its config and tensors.

        Raises:
            CheckpointError: a tensor is missing, superfluous, of another shape or no float.
        """
        digest = hashlib.sha256(config.encode())
        for name, tensor in self.tensors(expected):
            header = f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0"
            digest.update(header.encode())
            digest.update(bytes_of(tensor))
        return digest.hexdigest()

    def _check(self, expected: Shapes) -> None:
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

    def _check_scale(self, handle: TensorFile, scale: str, shape: tuple[int, ...]) -> None:
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


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a CPU tensor, row by row; a copy is made only where rows are apart."""
    array: Any = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's tensors by name, in its own order."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def save_tensors(
    state: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write CPU tensors as a safetensors file; the same always become the same bytes.

    Args:
        state: the tensors by name, in the order in which they shall lie.
        path: where; its folder must exist.
        metadata: beside the format, which is always told.

    Raises:
        OSError: the file cannot be written.
    """
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    save_stream(path, kinds, state.items(), metadata)


def save_stream(
    path: Path,
    kinds: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write CPU tensors one at a time as a safetensors file, whole or not at all.

    Args:
        path: where; its folder must exist.
        kinds: data type and shape of every tensor, in the order in which they shall lie.
        tensors: each of them once; each is let go of before the next is asked for.
        metadata: beside the format, which is always told.

    Raises:
        OSError: the file cannot be written.
    """
    named = {name: (_DTYPE_NAMES[dtype], shape) for name, (dtype, shape) in kinds.items()}
    arrays = ((name, _array(tensor)) for name, tensor in tensors)
    write_tensors(path, named, arrays, {"format": "pt", **(metadata or {})})


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().contiguous()
    array: NDArray[Any] = (
        tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return array


def _pieces(renamed: str | Sequence[Piece] | None) -> Sequence[Piece]:
    if renamed is None:
        return ()
    return (Piece(renamed),) if isinstance(renamed, str) else renamed


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the height and width of a 1x1 kernel."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
