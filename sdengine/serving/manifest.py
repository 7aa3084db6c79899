"""Manifest of a batch: what became of each row, in the order of the rows, written as a whole."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sdengine.errors import OutputError, SdengineError
from sdengine.serving.batch import Record
from sdengine.serving.batch_rows import RowFile
from sdengine.storage.temporary import remove_abandoned, temporary_file
from sdengine.storage.whole_file import whole_file

MANIFEST = "manifest.jsonl"
ERRORS = "errors.jsonl"


class RowLost(SdengineError):
    """Report a row of which the process that had it said nothing."""


class Manifest:
    """Records of rows, kept on the disk in the order in which they come.

    In memory there are 8 bytes a line, however many there are.

    Args:
        rows: what the records are of.
        output: folder that the files are written to.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, rows: RowFile, output: Path) -> None:
        self.rows = rows
        self.output = output
        self._places = array("Q", bytes(8 * (rows.num_lines + 1)))  # 0: none; else 1 + offset
        self._end = 0
        self._open = ExitStack()
        try:
            remove_abandoned(output)
            self._records = self._opened()
        except OSError as error:
            raise self._unwritable(error) from None

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def add(self, record: Record) -> None:
        """Take what became of a row; of two records of one the later counts.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            line = _line(record.content)
            self._records.write(line)
        except OSError as error:
            raise self._unwritable(error) from None
        self._places[record.number] = 1 + self._end
        self._end += len(line)

    def lost(self) -> Iterator[Record]:
        """Yield a record for each row that has none."""
        for number in range(1, self.rows.num_lines + 1):
            if not self._places[number] and self.rows.row(number) is not None:
                told = "the process that had it ended. Run the same command again."
                yield Record.of_error(number, RowLost(told))

    def finish(self) -> Path:
        """Write the manifest, and the errors among its lines to a file of their own.

        Returns:
            The manifest's file.

        Raises:
            OutputError: one of them cannot be written.
        """
        path, errors = self.output / MANIFEST, self.output / ERRORS
        num_errors = 0
        try:
            with whole_file(path) as file, whole_file(errors) as error_file:
                for line in self._lines():
                    file.write(line)
                    if "error" in json.loads(line):
                        error_file.write(line)
                        num_errors += 1
            if not num_errors:
                errors.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        return path

    def _lines(self) -> Iterator[bytes]:
        self._records.flush()
        with open(self._records.name, "rb") as file:
            for place in self._places:
                if place:
                    file.seek(place - 1)
                    yield file.readline()

    def _opened(self) -> IO[bytes]:
        _, file = self._open.enter_context(temporary_file(self.output / MANIFEST))
        return file

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(f"{str(self.output)!r} cannot be written: {error.strerror or error}.")


def _line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"
