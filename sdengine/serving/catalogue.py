"""Catalogue of what requests may name: files of the operator's folders, no path of a client's."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from sdengine.errors import ConfigError
from sdengine.inputs.loras import CONFIG_FILE, name_of

# What a name may stand for, and the endings of its files.
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "model": (".safetensors", ".ckpt", ".pt"),
        "lora": (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt"),
        "embedding": (".safetensors", ".pt", ".bin", ".png", ".webp"),
        "hypernetwork": (".pt", ".pth", ".ckpt"),
        "upscaler": (".onnx",),
        "ip_adapter": (".safetensors", ".bin"),
    }
)
_CHECKPOINT_FOLDER = "model_index.json"
_MAX_FILES = 10_000


class Catalogue:
    """Files by kind and name.

    A name is a file's without its ending, or a folder's where diffusers or PEFT wrote one. Two
    files of one name are called by their places below the folder, with slashes.

    Args:
        folders: of each kind of KINDS, searched with all folders in them; kinds that are left out
            have nothing.

    Raises:
        ConfigError: a kind is unknown, a folder is none, or there are too many files.
    """

    def __init__(self, folders: Mapping[str, str | os.PathLike[str]] | None = None) -> None:
        self._folders = {kind: Path(folder) for kind, folder in (folders or {}).items()}
        for kind, folder in self._folders.items():
            if kind not in KINDS:
                raise ConfigError.for_field("kind", kind, ", ".join(KINDS))
            if not folder.is_dir():
                raise ConfigError.for_field(f"folder of {kind}s", str(folder), "a folder")
        self._files: dict[str, dict[str, Path]] = {}
        self.refresh()

    @property
    def folders(self) -> Mapping[str, Path]:
        """The folder of each kind that has one."""
        return MappingProxyType(self._folders)

    def refresh(self) -> None:
        """Search the folders again, for files that came or went."""
        self._files = {kind: _found(kind, folder) for kind, folder in self._folders.items()}

    def files(self, kind: str) -> Mapping[str, Path]:
        """Return the files of a kind by name, in the names' order."""
        return MappingProxyType(self._files.get(kind, {}))

    def path(self, field: str, kind: str, name: object) -> Path:
        """Return what a name stands for.

        Args:
            field: what errors call it.
            kind: one of KINDS.
            name: as a client gives it.

        Raises:
            ConfigError: nothing has that name.
        """
        files = self._files.get(kind, {})
        if isinstance(name, str) and name in files:
            return files[name]
        near = difflib.get_close_matches(str(name)[:200], files, n=1)
        if near:
            hint = f"Did you mean {near[0]!r}?"
        elif files:
            hint = f"There are {len(files)}, such as {next(iter(files))!r}."
        else:
            hint = "The server has none."
        accepted = f"the name of one of the server's {kind.replace('_', '-')} files"
        raise ConfigError.for_field(field, name, accepted, hint)


def _found(kind: str, folder: Path) -> dict[str, Path]:
    by_name: dict[str, list[Path]] = {}
    for number, path in enumerate(_candidates(kind, folder)):
        if number >= _MAX_FILES:
            raise ConfigError(f"{folder}: it has more than {_MAX_FILES} files; give a smaller one.")
        name = name_of(path) if kind == "lora" else (path.name if path.is_dir() else path.stem)
        by_name.setdefault(name, []).append(path)
    found = {}
    for name, paths in by_name.items():
        for path in paths:
            place = path.relative_to(folder)
            found[name if len(paths) == 1 else place.as_posix()] = path
    return dict(sorted(found.items()))


def _candidates(kind: str, folder: Path) -> Iterator[Path]:
    """Yield files, and folders that are one thing, in the order of their names."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        marks = {"model": _CHECKPOINT_FOLDER, "lora": CONFIG_FILE}
        if marks.get(kind) in files and here != folder:
            folders.clear()
            yield here
            continue
        folders.sort()
        hidden = (name for name in sorted(files) if not name.startswith("."))
        for name in hidden:
            if name.lower().endswith(KINDS[kind]):
                yield here / name
