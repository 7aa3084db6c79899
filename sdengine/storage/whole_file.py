"""Whole files: written beside their place and renamed, so that one is complete or not there.

A file is never written in place: whoever has mapped the one before keeps it as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sdengine.storage.temporary import temporary_file


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to be written; with the end of the block it takes its place, on the disk too.

    Until then it is called .NAME.* beside it, and after an error it is gone.

    Args:
        path: where it shall be; its folder must exist.

    Raises:
        OSError: the place cannot be written.
    """
    with temporary_file(path) as (temporary, file):
        yield file
        file.flush()
        os.fsync(file.fileno())  # or after a loss of power the name could stand for half a file
        if os.name == "nt":
            file.close()  # what is open cannot be renamed there
        os.replace(temporary, path)
