"""Names of bundles, as requests call them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdengine.errors import ConfigError


def named_bundles(given: Sequence[str]) -> dict[str, str]:
    """Return the paths of bundles by their names.

    Args:
        given: `NAME=PATH`, or a path, whose last part is the name.

    Raises:
        ConfigError: one is neither, or two have one name.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            name, path = Path(one).name, one
        if not name or not path or name in found:
            raise ConfigError.for_field("bundle", one, "[NAME=]PATH, each name once")
        found[name] = path
    return found
