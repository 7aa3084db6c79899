"""Files that are kept in the user's cache: which there are, and away with them."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdengine.storage.cache_dir import cache_dir


@dataclass(frozen=True)
class KeptFile:
    """One of them, as it was when it was looked at.

    Args:
        path: of the file.
        size_bytes: of its content.
        used: when it was written or last used, in seconds since 1970.
    """

    path: Path
    size_bytes: int
    used: float


@dataclass(frozen=True)
class KeptFiles:
    """The files of one kind. Several processes may add and remove some meanwhile.

    Args:
        purpose: of their folder; see `cache_dir`.
        names: their names' pattern. While it is written, NAME is called .NAME.* instead.
    """

    purpose: str
    names: str

    @property
    def folder(self) -> Path:
        """Return where they are; it may not exist yet."""
        return cache_dir(self.purpose)

    def files(self) -> list[KeptFile]:
        """Return the files, the ones used last first."""
        return sorted(self._matching(self.names), key=lambda file: -file.used)

    def clear(self) -> int:
        """Remove them and what interrupted writers left, and return how many bytes that freed."""
        freed = 0
        for file in [*self._matching(self.names), *self._matching(f".{self.names}.*")]:
            with contextlib.suppress(OSError):
                file.path.unlink()
                freed += file.size_bytes
        return freed

    def _matching(self, pattern: str) -> Iterator[KeptFile]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield KeptFile(path, status.st_size, status.st_mtime)
