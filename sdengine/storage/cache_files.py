"""Cache files: where the user's cache is, and the files of one kind in it, listed and removed."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "SDENGINE_CACHE"


def cache_dir(purpose: str) -> Path:
    """Return the folder for one purpose; it may not exist yet.

    It is in the folder that the environment variable SDENGINE_CACHE names, else in the user's
    cache: $XDG_CACHE_HOME/sdengine, or ~/.cache/sdengine.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given) / purpose
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sdengine" / purpose


@dataclass(frozen=True)
class CacheFile:
    """A file of the cache, as it was when it was looked at.

    Args:
        path: of the file.
        size_bytes: of its content.
        used: when it was written or last used, in seconds since 1970.
    """

    path: Path
    size_bytes: int
    used: float


@dataclass(frozen=True)
class CacheFiles:
    """The cache's files of one kind. Several processes may add and remove some meanwhile.

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

    def files(self) -> list[CacheFile]:
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

    def _matching(self, pattern: str) -> Iterator[CacheFile]:
        for path in self.folder.glob(pattern):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield CacheFile(path, status.st_size, status.st_mtime)
