"""Where files are kept that can be made again."""

from __future__ import annotations

import os
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
