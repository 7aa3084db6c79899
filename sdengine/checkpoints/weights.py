"""Safetensors weights of one network: checked against the network before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sdengine.checkpoints.folder import CheckpointFolder
from sdengine.errors import CheckpointError, OutputError

_FLOATS = ("F16", "BF16", "F32", "F64")
_MAX_SHARDS = 1000

# Names that old files use for the same parameters, or that are no parameters.
_RENAMED_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NO_PARAMETERS = ("position_ids",)


class Weights:
    """The tensors of one network, in one file or several; opened lazily, never executed.

    Args:
        files: safetensors files.
        rename: gives a tensor's name in the network, or None for one to leave out.
    """

    def __init__(self, files: list[Path], rename: Callable[[str], str | None]) -> None:
        self.files = files
        self._handles: list[Any] = []
        self._places: dict[str, tuple[Any, str]] = {}  # name -> file, its name there
        for path in files:
            try:
                handle: Any = safe_open(path, framework="pt")
                names = list(handle.keys())
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(
                    f"{path}: not a complete safetensors file: {error}. Get the file again."
                ) from None
            for stored in names:
                name = rename(stored)
                if name is None:
                    continue
                if name in self._places:
                    raise CheckpointError(f"{path}: tensor {name!r} is there twice.")
                self._places[name] = (handle, stored)

    def load_into(
        self, make: Callable[[], nn.Module], dtype: torch.dtype | None, device: str = "cpu"
    ) -> nn.Module:
        """Build a network and give it these weights.

        Args:
            make: builds the network; called on the meta device, so it allocates nothing.
            dtype: what the weights are converted to; None leaves them as stored, mapped from the
                file and not copied.
            device: where they go.

        Returns:
            The network in evaluation mode, without gradients.

        Raises:
            CheckpointError: a tensor is missing, superfluous, of another shape or no float.
        """
        with torch.device("meta"):
            module = make()
        expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
        self._check(expected)
        state = {}
        for name in expected:
            handle, stored = self._places[name]
            try:
                tensor = handle.get_tensor(stored)
                state[name] = tensor.to(device=device, dtype=dtype or tensor.dtype)
            except (SafetensorError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{self._where()}: tensor {name!r}: {error}.") from None
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False).eval()

    def _check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        missing = sorted(expected.keys() - self._places.keys())
        if missing:
            raise CheckpointError(
                f"{self._where()}: {len(missing)} of {len(expected)} tensors are missing, first "
                f"{missing[0]!r} {list(expected[missing[0]])}. The file is not of this network, or "
                "config.json is of another."
            )
        extra = sorted(self._places.keys() - expected.keys())
        if extra:
            raise CheckpointError(
                f"{self._where()}: {len(extra)} tensors are unknown to the network that "
                f"config.json describes, first {extra[0]!r}."
            )
        for name, shape in expected.items():
            handle, stored = self._places[name]
            view = handle.get_slice(stored)
            found, found_dtype = tuple(view.get_shape()), view.get_dtype()
            if found != shape:
                raise CheckpointError(
                    f"{self._where()}: tensor {name!r} has shape {list(found)}; config.json asks "
                    f"for {list(shape)}."
                )
            if found_dtype not in _FLOATS:
                raise CheckpointError(
                    f"{self._where()}: tensor {name!r} is {found_dtype}; expected one of "
                    f"{', '.join(_FLOATS)}."
                )

    def _where(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def save_tensors(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write contiguous CPU tensors as a safetensors file that everyone may read.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        save_file(dict(state), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    path.chmod(0o644)  # the library makes it private


def open_weights(folder: CheckpointFolder, part: str, stem: str) -> Weights:
    """Find and open the weights of one network.

    Args:
        folder: the checkpoint.
        part: the network's subfolder.
        stem: the file's name without ending, such as "diffusion_pytorch_model".

    Raises:
        CheckpointError: there are none, only pickled ones, or they are damaged.
    """
    return Weights(_files(folder, part, stem), _renamer(part))


def _files(folder: CheckpointFolder, part: str, stem: str) -> list[Path]:
    for variant in ("", ".fp16"):
        single = folder.find(f"{part}/{stem}{variant}.safetensors")
        if single is not None:
            return [single]
        index = f"{part}/{stem}.safetensors.index{variant}.json"
        if folder.find(index):
            return _shards(folder, part, index)
    pickled = folder.find(f"{part}/{stem}.bin", f"{part}/{stem}.ckpt")
    if pickled:
        raise CheckpointError(
            f"{pickled}: pickled weights can run code, so they are not read. Save the checkpoint "
            "as safetensors, as diffusers' save_pretrained does."
        )
    raise CheckpointError(
        f"{folder.root / part}: there is no {stem}.safetensors. The checkpoint is incomplete."
    )


def _shards(folder: CheckpointFolder, part: str, index: str) -> list[Path]:
    weight_map = folder.json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{folder.root / index}: weight_map is not tensor name -> file name.")
    names = sorted(set(weight_map.values()))
    if not 1 <= len(names) <= _MAX_SHARDS:
        raise CheckpointError(f"{folder.root / index}: names {len(names)} files.")
    for name in names:
        if PurePosixPath(name).name != name or name in (".", "..") or "\\" in name or "\0" in name:
            raise CheckpointError(f"{folder.root / index}: {name[:80]!r} is not a file name.")
    return [folder.file(f"{part}/{name}") for name in names]


def _renamer(part: str) -> Callable[[str], str | None]:
    def rename(name: str) -> str | None:
        if name.endswith(_NO_PARAMETERS):
            return None
        if part.startswith("text_encoder") and not name.startswith("text_"):
            return f"text_model.{name}"  # some versions of transformers leave the prefix out
        if part == "vae" and ".attentions." in name:
            head, _, kind = name.rpartition(".")
            stem, _, last = head.rpartition(".")
            return f"{stem}.{_RENAMED_VAE_ATTENTION.get(last, last)}.{kind}"
        return name

    return rename
