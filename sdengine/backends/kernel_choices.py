"""Kernel choices: which way to cut a kernel's work was found to be fastest on a GPU, in a file.

They hold for one GPU, its driver and one release of triton.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sdengine.backends.cache_file import Key, Kind, cache_path, load, save
from sdengine.storage.cache_files import CacheFiles
from sdengine.storage.cache_place import LIMIT_VARIABLE, say_not_kept

KIND = Kind("kernel choice", b"sdengine kernel choices 1\n", "choices", "triton")
KEPT = CacheFiles(KIND.purpose, f"{KIND.prefix}-*.cache")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChoiceKey(Key):
    """Name what choices hold for.

    Args:
        driver: release of NVIDIA's driver, or "unknown".
    """

    program: ClassVar[str] = "triton"
    driver: str

    def __str__(self) -> str:
        return f"{super().__str__()}, driver {self.driver}"


class KeptChoices:
    """The choices of one GPU: names of variants by operation, type and shape.

    No request fails here: what cannot be read or written is said in a warning, and measured again.

    Args:
        key: what they hold for.
    """

    def __init__(self, key: ChoiceKey) -> None:
        self.found: dict[str, str] = {}
        self._key = key
        self._path: Path | None = None
        self._is_written, self._is_new = True, False
        try:
            self._path = cache_path(KIND, key)
        except OSError as error:
            say_not_kept("timings of kernels", error.strerror)
            return
        loaded = load(self._path, KIND, key)
        self._is_written = loaded.replaceable
        if loaded.reason:
            self._warn(f"are not used: {loaded.reason}")
        if loaded.content:
            self.found = _read(loaded.content)

    def add(self, name: str, variant: str) -> None:
        """Remember a choice."""
        self.found[name] = variant
        self._is_new = True

    def save(self) -> None:
        """Write the file if there is more than it holds, with what others wrote meanwhile."""
        if not self._is_new or self._path is None or not self._is_written:
            return
        self.found = {**_read(load(self._path, KIND, self._key).content), **self.found}
        content = json.dumps(dict(sorted(self.found.items()))).encode()
        try:
            if not KEPT.make_room(len(content)):
                raise OSError(None, f"they exceed {LIMIT_VARIABLE} or what the disk has free")
            save(self._path, KIND, self._key, content)
            self._is_new = False
        except OSError as error:
            self._is_written = False
            self._warn(f"cannot be written: {error.strerror or error}")

    def _warn(self, text: str) -> None:
        _log.warning("kernel choices %s %s", self._path, text)


def _read(content: bytes) -> dict[str, str]:
    """Return what a file holds; what is no choice is left out, and measured again."""
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    items: Mapping[Any, Any] = found if isinstance(found, dict) else {}
    return {name: one for name, one in items.items() if isinstance(one, str)}
