"""Files of answers by address: kept for a while, found by a name that nobody can guess."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sdengine.errors import ConfigError


@dataclass(frozen=True)
class File:
    """A file that is kept.

    Args:
        content: of it.
        kept_at: seconds of a clock that nobody sets.
    """

    content: bytes
    kept_at: float


class Files:
    """Files by name; the oldest go by bytes and by time. Used by one event loop.

    A browser that shows a picture sends no token, so that the name is what lets one have it.

    Args:
        max_bytes: of all files together.
        max_seconds: for which one is kept.
    """

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._files: dict[str, File] = {}  # the oldest first
        self._bytes = 0

    def __len__(self) -> int:
        self._tidy()
        return len(self._files)

    def put(self, contents: Sequence[bytes], ending: str) -> list[str]:
        """Keep files, and return their names.

        Raises:
            ConfigError: they are too large to be kept together.
        """
        total = sum(map(len, contents))
        if total > self._max_bytes:
            hint = f"The pictures have {total} bytes, of which at most {self._max_bytes} are kept."
            raise ConfigError.for_field("response_format", "url", "b64_json", hint)
        names = []
        for content in contents:
            name = f"{secrets.token_urlsafe(24)}.{ending}"
            self._files[name] = File(content, time.monotonic())
            self._bytes += len(content)
            names.append(name)
        self._tidy()
        return names

    def get(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none, or no longer."""
        self._tidy()
        found = self._files.get(name)
        return None if found is None else found.content

    def _tidy(self) -> None:
        oldest = time.monotonic() - self._max_seconds
        for name, file in list(self._files.items()):
            if self._bytes <= self._max_bytes and file.kept_at >= oldest:
                return
            del self._files[name]
            self._bytes -= len(file.content)
