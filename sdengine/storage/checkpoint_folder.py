"""Checkpoint folder: its files, found without ever leaving it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sdengine.errors import CheckpointError
from sdengine.storage.regular_file import open_regular

DIFFUSERS_STEMS = ("diffusion_pytorch_model",)
TRANSFORMERS_STEMS = ("model", "pytorch_model")  # the second is what its pickled files are called
MAX_JSON_BYTES = 16 << 20
_MAX_SHARDS = 1000
_MAX_DEPTH = 20


def _is_shallow(content: Any) -> bool:
    level = [content]
    for _ in range(_MAX_DEPTH):
        children = [v.values() if isinstance(v, dict) else v for v in level]
        level = [item for child in children for item in child if isinstance(item, (dict, list))]
    return not level


def _weight_names(
    part: str, stems: tuple[str, ...], variant: str | None
) -> Iterator[tuple[str, str]]:
    """Yield what a network's single file and the index of its shards may be called, best first."""
    for ending in ("safetensors", "bin"):
        for stem in stems:
            for choice in (f".{variant}",) if variant else ("", ".fp16"):
                single = f"{part}/{stem}{choice}.{ending}"
                yield single, f"{part}/{stem}.{ending}.index{choice}.json"


def weight_stems(part: str) -> tuple[str, ...]:
    """Return what a network's files are called, without variant and ending."""
    return TRANSFORMERS_STEMS if part.startswith("text_encoder") else DIFFUSERS_STEMS


class CheckpointFolder:
    """Look up files by names that may come from the checkpoint itself.

    Args:
        root: an existing folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        real = root.resolve()
        self._allowed = [real]
        if real.parent.name == "snapshots":
            # The download cache of the Hugging Face hub: a snapshot is made of links to its blobs.
            self._allowed.append(real.parent.parent / "blobs")

    def find(self, *names: str) -> Path | None:
        """Return the first of these relative paths that exists as a file inside the folder."""
        for name in names:
            path = self.root / name
            if not path.is_symlink() and not path.exists():
                continue
            try:
                real = path.resolve(strict=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}.") from None
            if not any(real.is_relative_to(folder) for folder in self._allowed):
                raise CheckpointError(f"{path}: leads out of the checkpoint, to {real}.")
            if not real.is_file():
                raise CheckpointError(f"{path}: not a regular file.")
            return path
        return None

    def file(self, name: str) -> Path:
        """Return a file that must exist."""
        path = self.find(name)
        if path is None:
            raise CheckpointError(f"{self.root / name} is missing. The checkpoint is incomplete.")
        return path

    def json(self, name: str) -> dict[str, Any]:
        """Read a file that must hold a JSON object."""
        path = self.file(name)
        try:
            with open_regular(path) as file:
                data = file.read(MAX_JSON_BYTES + 1)
            if len(data) > MAX_JSON_BYTES:
                raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes.")
            content = json.loads(data)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {str(error)[:120]}.") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object.")
        if not _is_shallow(content):
            raise CheckpointError(f"{path} is nested more than {_MAX_DEPTH} deep.")
        return content

    def weight_files(self, part: str, stems: tuple[str, ...], variant: str | None) -> list[Path]:
        """Find the weights of one network: a single file, or the shards that an index names.

        Args:
            part: the network's subfolder, or "." for the folder itself.
            stems: the file's names without variant and ending, by preference.
            variant: such as "fp16", or None for the plain files, or else those of "fp16".

        Raises:
            CheckpointError: there are none, or an index names what is no file of the subfolder.
        """
        for single, index in _weight_names(part, stems, variant):
            path = self.find(single)
            if path is not None:
                return [path]
            if self.find(index):
                return self._shards(part, index)
        wanted = f"{stems[0]}{f'.{variant}' if variant else ''}.safetensors"
        raise CheckpointError(
            f"{self.root / part}: there is no {wanted}, nor its shards. The checkpoint is "
            f"incomplete{'' if variant is None else ' or has no such variant'}."
        )

    def has_weights(self, part: str, stems: tuple[str, ...], variant: str) -> bool:
        """Say whether there are weights of one network in a variant."""
        names = (name for pair in _weight_names(part, stems, variant) for name in pair)
        return self.find(*names) is not None

    def _shards(self, part: str, index: str) -> list[Path]:
        weight_map = self.json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(v, str) for v in weight_map.values()
        ):
            raise CheckpointError(
                f"{self.root / index}: weight_map is not tensor name -> file name."
            )
        names = sorted(set(weight_map.values()))
        if not 1 <= len(names) <= _MAX_SHARDS:
            raise CheckpointError(f"{self.root / index}: names {len(names)} files.")
        for name in names:
            plain = PurePosixPath(name).name == name and name not in (".", "..")
            if not plain or "\\" in name or "\0" in name:
                raise CheckpointError(f"{self.root / index}: {name[:80]!r} is not a file name.")
        return [self.file(f"{part}/{name}") for name in names]
