"""Rows of a batch: the lines of a JSON Lines file, read one at a time however many there are."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sdengine.errors import ConfigError
from sdengine.storage.content_hash import FileVersion
from sdengine.storage.regular_file import open_regular

MAX_LINE_BYTES = 64 << 20  # pictures in it are a third larger than their files
_PIECE_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """A line that is not blank.

    Args:
        number: of the line in its file, from 1.
        text: of it; None of a line that has more than MAX_LINE_BYTES.
    """

    number: int
    text: bytes | None

    def fields(self) -> dict[str, Any]:
        """Return the object that it holds.

        Raises:
            ConfigError: it holds no JSON object, or one that says something twice.
        """
        if self.text is None:
            raise ConfigError(f"request: the line has more than {MAX_LINE_BYTES >> 20} MiB.")
        try:
            content = json.loads(
                self.text.decode(), object_pairs_hook=_named_once, parse_constant=_no_constant
            )
        except ConfigError:  # a ValueError that says what is wrong already
            raise
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise ConfigError(f"request: it is not valid JSON: {str(reason)[:120]}.") from None
        if not isinstance(content, dict):
            raise ConfigError.for_field("request", content, "an object of fields by name")
        return content


@dataclass(frozen=True)
class Chunk:
    """Lines that follow each other.

    Args:
        offset: of the first, in bytes.
        first: its number, from 1.
        count: of the lines, blank ones among them.
    """

    offset: int
    first: int
    count: int


class RowFile:
    """A file of requests, one a line, as it is when this is made.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or has no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")  # of the lines, in bytes
        self.count = 0  # of the lines that are not blank
        with self._open() as file:
            self._version = _version(file)
            offset = 0
            for line in _lines(file, keep=False):
                self._starts.append(offset)
                offset += line.size_bytes
                self.count += not line.is_blank
        if not self.count:
            raise ConfigError(f"requests: {str(path)!r} has no rows. Write one request a line.")

    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order."""
        return read_rows(self.path, Chunk(0, 1, len(self._starts)))

    def chunks(self, lines: int) -> Iterator[Chunk]:
        """Yield all lines in chunks of so many."""
        total = len(self._starts)
        for first in range(0, total, lines):
            yield Chunk(self._starts[first], first + 1, min(lines, total - first))

    def row(self, number: int) -> Row | None:
        """Return the row of a line; None if it is blank."""
        chunk = Chunk(self._starts[number - 1], number, 1)
        return next(read_rows(self.path, chunk), None)

    @property
    def num_lines(self) -> int:
        """The lines of the file, blank ones among them."""
        return len(self._starts)

    def is_unchanged(self) -> bool:
        """Say whether the file is still as it was."""
        try:
            with self._open() as file:
                return _version(file) == self._version
        except ConfigError:
            return False

    def _open(self) -> BinaryIO:
        return _opened(self.path)


def read_rows(path: Path, chunk: Chunk) -> Iterator[Row]:
    """Yield the rows of some lines of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    with _opened(path) as file:
        file.seek(chunk.offset)
        lines = _lines(file, keep=True)
        for number, line in zip(range(chunk.first, chunk.first + chunk.count), lines, strict=False):
            if not line.is_blank:
                text = line.text
                if text is not None and number == 1:
                    text = text.removeprefix(_BYTE_ORDER_MARK)
                yield Row(number, text)


@dataclass(frozen=True)
class _Line:
    text: bytes | None
    size_bytes: int
    is_blank: bool


def _lines(file: BinaryIO, keep: bool) -> Iterator[_Line]:
    """Yield lines; of one that is too long nothing is kept but its size."""
    limit = MAX_LINE_BYTES if keep else _PIECE_BYTES
    while piece := file.readline(limit + 1):
        size, is_blank, text = len(piece), not piece.strip(), piece if len(piece) <= limit else None
        while not piece.endswith(b"\n") and (piece := file.readline(_PIECE_BYTES)):
            size += len(piece)
            is_blank = is_blank and not piece.strip()
            text = None
        yield _Line(text, size, is_blank)


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"requests: {str(path)!r} cannot be read: {reason}.") from None


def _version(file: BinaryIO) -> FileVersion:
    return FileVersion.of(os.fstat(file.fileno()))


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{twice[:80]!r}: it is given twice; give it once.")
    return found


def _no_constant(text: str) -> Any:
    raise ConfigError(f"request: {text} is no number in JSON.")
