"""Types of what callers give: files by their paths, each with a value."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol, TypeVar

Value = TypeVar("Value", covariant=True)
PathLike = str | os.PathLike[str]


class ByFile(Protocol[Value]):
    """A mapping from paths to values.

    To a type checker a dict[str, float] is no Mapping[str | os.PathLike[str], float]; but its items
    are some of that one's.
    """

    def items(self) -> Iterable[tuple[PathLike, Value]]:
        """Return each path with its value."""
