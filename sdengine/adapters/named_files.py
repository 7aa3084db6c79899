"""Named files: what prompts may name in tags, found by file names, aliases and hashes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from sdengine.errors import AdapterError, ConfigError

MAX_FILES = 20_000
RUN_ENDING = ".training"  # as `sdengine train` calls its folders


class NamedFiles:
    """Files of one kind. To be used by one thread at a time.

    Args:
        field: what messages call them.
        endings: of such files, in lower case.
        place_of: gives what a file stands for: itself, or its folder.
        name_of: gives the name of that.
        alias_of: gives another name that a file says of itself; "" for none.
        hash_of: gives the SHA-256 of what a path leads to.
    """

    def __init__(
        self,
        field: str,
        endings: Sequence[str],
        place_of: Callable[[Path], Path],
        name_of: Callable[[Path], str],
        alias_of: Callable[[Path], str],
        hash_of: Callable[[Path], str],
    ) -> None:
        self._field, self._endings = field, tuple(endings)
        self._place_of, self._name_of = place_of, name_of
        self._alias_of, self._hash_of = alias_of, hash_of
        self._by_name: dict[str, list[Path]] = {}
        self._aliases: dict[str, list[Path]] | None = None
        self._hashes: dict[str, Path] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that there are, sorted."""
        return tuple(sorted(self._by_name))

    def add(self, *paths: str | os.PathLike[str]) -> None:
        """Add files, and all such files of folders and of the folders in them.

        Raises:
            ConfigError: a path leads to neither, or a folder holds more than MAX_FILES of them.
        """
        found: list[Path] = []
        for path in map(Path, paths):
            if path.is_dir():
                found += self._files(path)
            elif path.is_file() and path.suffix.lower() in self._endings:
                found.append(path)
            else:
                raise ConfigError.for_field(
                    self._field, str(path), f"a folder, or a file: {', '.join(self._endings)}"
                )
        # Another thread may be looking for one meanwhile.
        by_name = {name: list(known) for name, known in self._by_name.items()}
        for path in map(self._place_of, found):
            known = by_name.setdefault(self._name_of(path), [])
            if path not in known:
                known.append(path)
        self._by_name = by_name
        self._aliases = self._hashes = None

    def find(self, name: str) -> Sequence[Path]:
        """Return the files of a name: those called so, else so in other letters, else by alias."""
        if exact := self._by_name.get(name):
            return exact
        folded = name.casefold()
        alike = [
            p for one, paths in self._by_name.items() if one.casefold() == folded for p in paths
        ]
        if alike:
            return alike
        if self._aliases is None:
            self._aliases = {}
            for path in self._all():
                if alias := self._alias_of(path):
                    self._aliases.setdefault(alias.casefold(), []).append(path)
        return self._aliases.get(folded, [])

    def of_hash(self, sha256: str) -> Path | None:
        """Return the file of a content; files that cannot be read by now are passed over."""
        if self._hashes is None:
            self._hashes = {}
            for path in self._all():
                with contextlib.suppress(AdapterError):
                    self._hashes[self._hash_of(path)] = path
        return self._hashes.get(sha256)

    def _all(self) -> list[Path]:
        return [path for paths in self._by_name.values() for path in paths]

    def _files(self, folder: Path) -> list[Path]:
        failed: list[OSError] = []
        found: list[Path] = []
        for root, folders, names in os.walk(folder, onerror=failed.append):
            # What a training keeps beside its file is not for prompts.
            folders[:] = sorted(one for one in folders if not one.endswith(RUN_ENDING))
            found += [
                Path(root, name)
                for name in sorted(names)
                if os.path.splitext(name)[1].lower() in self._endings
            ]
            if len(found) > MAX_FILES:
                raise ConfigError.for_field(
                    self._field, str(folder), f"a folder of at most {MAX_FILES} files"
                )
        if failed:
            reason = failed[0].strerror
            raise ConfigError(f"{self._field}: {str(folder)!r} cannot be read: {reason}.")
        return found
