"""File locks: how processes tell each other that they write or use a file or a folder.

A lock lasts as long as the file is open, also where only a mapping of it is left, and ends with its
process however that ends. Where the system has none, nothing is known of other processes.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where what is open cannot be removed anyhow
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Holders(Enum):
    """Say who holds a file."""

    NOBODY = "nobody"
    SOMEBODY = "somebody"
    UNKNOWN = "unknown"


def hold(descriptor: int, *, alone: bool = False) -> None:
    """Lock an open file or folder until it is closed, as far as the system can.

    Args:
        descriptor: of it.
        alone: nobody else may hold it; a file in use is held by all its users.
    """
    if HAS_LOCKS:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH | fcntl.LOCK_NB
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, kind)


@contextmanager
def asking(path: Path) -> Iterator[Holders]:
    """Tell who holds a file or folder; in the block nobody begins to where nobody did.

    Raises:
        OSError: it cannot be opened.
    """
    if not HAS_LOCKS:
        yield Holders.UNKNOWN
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        holders = Holders.NOBODY
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holders = Holders.SOMEBODY if error.errno in _TAKEN else Holders.UNKNOWN
        yield holders
    finally:
        os.close(descriptor)
