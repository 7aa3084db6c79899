"""Weights of one network: checked against the network before anything is allocated."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from sdengine.adapters.sources.placement import EIGHT_BITS, Placement, Shapes
from sdengine.adapters.sources.renaming import Renamer
from sdengine.checkpoints.no_parameters import ParameterFile, open_parameters
from sdengine.models.dtypes import SAFETENSORS_DTYPES
from sdengine.storage.tensor_file import write_tensors

_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


class Weights(Placement[ParameterFile]):
    """The tensors of one network, in one file or several; opened lazily, never executed.

    Args:
        files: tensor files of any known format.
        rename: gives a stored tensor's name in the network, without the prefix.
        prefix: of the network's tensors, where the files hold others too.
        own: what names of its parameters begin with that other networks' files have no use for.

    Attributes:
        left_out: what each of the others is, as far as it is the network's business.
        elsewhere: the tensors that do not begin with the prefix.
        derive: gives what the network has in the place of a tensor that is read, by its name; None
            where it has that tensor.

    Raises:
        CheckpointError: a file is damaged, or holds a tensor twice.
    """

    def __init__(
        self,
        files: Sequence[Path],
        rename: Renamer,
        prefix: str = "",
        own: tuple[str, ...] = (),
    ) -> None:
        super().__init__(files, rename, prefix, functools.partial(open_parameters, own=own))
        self.derive: Callable[[str, torch.Tensor], torch.Tensor] | None = None

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
        self.check(expected)
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

    def _read(self, handle: ParameterFile, stored: str) -> torch.Tensor:
        tensor = handle.read(stored)
        if handle.dtype(stored) in EIGHT_BITS:
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
