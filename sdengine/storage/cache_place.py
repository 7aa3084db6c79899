"""Place of the user's cache, and how much may be kept there."""

from __future__ import annotations

import errno
import functools
import logging
import os
from pathlib import Path

from sdengine.storage.byte_size import parse_bytes

CACHE_VARIABLE = "SDENGINE_CACHE"
LIMIT_VARIABLE = "SDENGINE_CACHE_LIMIT"
DEFAULT_LIMIT_BYTES = 20 << 30
_log = logging.getLogger(__name__)


def cache_dir(purpose: str) -> Path:
    """Return the folder for one purpose; it may not exist yet.

    It is in the folder that the environment variable SDENGINE_CACHE names, else in the user's
    cache: $XDG_CACHE_HOME/sdengine, or ~/.cache/sdengine.

    Raises:
        OSError: the user has no home folder, and neither variable names one.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given) / purpose
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # others are to be passed over
        return Path(base) / "sdengine" / purpose
    try:
        home = Path.home()
    except RuntimeError:
        raise OSError(errno.ENOENT, "the user has no home folder") from None
    return home / ".cache" / "sdengine" / purpose


def cache_limit_bytes() -> int:
    """Return the most that is kept for one purpose: what SDENGINE_CACHE_LIMIT says, or 20 GiB.

    Raises:
        ConfigError: it says no size.
    """
    given = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not given:
        return DEFAULT_LIMIT_BYTES
    return 0 if given == "0" else parse_bytes(LIMIT_VARIABLE, given)


@functools.cache
def say_not_kept(what: str, reason: str) -> None:
    """Log, once a process, that something is made anew at every start: the work is done anyhow."""
    _log.warning(
        "%s cannot be kept, and are made again at every start: %s. %s names another folder.",
        what, reason, CACHE_VARIABLE,
    )  # fmt: skip
