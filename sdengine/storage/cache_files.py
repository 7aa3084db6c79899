"""Cache files: those of one kind in the user's cache, listed, removed, and kept within a limit."""

from __future__ import annotations

import contextlib
import logging
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdengine.storage.cache_place import cache_dir, cache_limit_bytes
from sdengine.storage.content_hash import last_use
from sdengine.storage.file_lock import Holders, asking
from sdengine.storage.temporary import is_abandoned

_log = logging.getLogger(__name__)


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
        """Return where they are; it may not exist yet.

        Raises:
            OSError: there is no place.
        """
        return cache_dir(self.purpose)

    def files(self) -> list[CacheFile]:
        """Return the files, the ones used last first."""
        return sorted(self._matching(self.names), key=lambda file: -file.used)

    def leftovers(self) -> list[CacheFile]:
        """Return what writers left that were killed."""
        return [file for file in self._matching(f".{self.names}.*") if is_abandoned(file.path)]

    def clear(self) -> int:
        """Remove them and what killed writers left, and return how many bytes that freed."""
        return _remove([*self.files(), *self.leftovers()])

    def make_room(self, needed_bytes: int) -> bool:
        """Remove leftovers, then files from the one used longest ago, none that is in use.

        Args:
            needed_bytes: of what is to be written.

        Returns:
            Whether it fits into the limit and onto the disk.

        Raises:
            OSError: the folder cannot be made or looked at.
            ConfigError: the limit is no size.
        """
        limit = cache_limit_bytes()
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove(self.leftovers())
        files = self.files()
        written = sum(file.size_bytes for file in self._matching(f".{self.names}.*"))
        total = needed_bytes + written + sum(file.size_bytes for file in files)
        free = shutil.disk_usage(self.folder).free
        for file in reversed(files):
            if total <= limit and needed_bytes <= free:
                break
            if needed_bytes <= limit and _remove_unused(file):
                total -= file.size_bytes
                free += file.size_bytes
        return total <= limit and needed_bytes <= free

    def _matching(self, pattern: str) -> Iterator[CacheFile]:
        with contextlib.suppress(OSError):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        yield CacheFile(path, status.st_size, last_use(status))


# What `content_hash` remembers of files, here and in bundles.
REMEMBERED = CacheFiles("versions", "*.json")


def _remove(files: list[CacheFile]) -> int:
    freed = 0
    for file in files:
        with contextlib.suppress(OSError):
            file.path.unlink()
            freed += file.size_bytes
    return freed


def _remove_unused(file: CacheFile) -> bool:
    try:
        with asking(file.path) as holders:
            if holders is Holders.SOMEBODY:
                return False
            file.path.unlink()  # where nothing is known of others: who has it mapped keeps it
    except OSError:
        return False
    _log.info("removed %s, %.0f MB, to make room", file.path, file.size_bytes / 1e6)
    return True
