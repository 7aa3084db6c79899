"""Begun rows: marks of the rows that are being made, by which those show that end their process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdengine.errors import OutputError, SdengineError
from sdengine.storage.temporary import abandoned, remove_abandoned, temporary_file

MAX_DEATHS = 3
_ATTEMPTS = 5
_FOLDER = ".begun"


class EndedItsProcess(SdengineError):
    """Report a row whose process ended each time that it was made, as by a lack of memory."""


class BegunRows:
    """Marks in a folder of their own, one for each row that some process makes now.

    A mark is locked by its process: one that nobody holds was left by a process that ended.

    Args:
        output: folder of the batch.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output / _FOLDER

    @contextmanager
    def begin(self, name: str) -> Iterator[None]:
        """Mark a row for as long as the block runs.

        Raises:
            EndedItsProcess: its processes ended MAX_DEATHS times; it may be tried as often again.
            OutputError: the mark cannot be written.
        """
        left = [path for path in abandoned(self.folder) if path.name.startswith(f".{name}.")]
        try:
            if len(left) >= MAX_DEATHS:
                raise EndedItsProcess(
                    f"the process that made it ended {len(left)} times, perhaps for lack of "
                    "memory. Another run tries it again."
                )
            with contextlib.ExitStack() as marked:
                try:
                    for attempt in range(_ATTEMPTS):
                        self.folder.mkdir(exist_ok=True)
                        try:
                            marked.enter_context(temporary_file(self.folder / name))
                            break
                        except FileNotFoundError:  # another run ended, and removed the folder
                            if attempt + 1 == _ATTEMPTS:
                                raise
                except OSError as error:
                    what = f"{str(self.folder)!r} cannot be written: {error.strerror}."
                    raise OutputError(what) from None
                yield
        finally:
            for path in left:
                with contextlib.suppress(OSError):
                    path.unlink()

    def clear(self) -> None:
        """Forget rows whose processes were ended on purpose."""
        remove_abandoned(self.folder)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # others may be at work in it
