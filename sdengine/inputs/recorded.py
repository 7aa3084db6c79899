"""Recorded input of a request: known by its hash in metadata, given again to be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.errors import ConfigError


class Recorded:
    """What does not change, and the SHA-256 that names it in metadata.

    Args:
        sha256: of the file that it was read from; of its size and values where there was none.
        name: of the file, for people; perhaps empty.
        size: width and height in pixels; (0, 0) of what has none.
    """

    def __init__(self, sha256: str, name: str = "", size: tuple[int, int] = (0, 0)) -> None:
        self.sha256 = sha256
        self.name = name
        self.size = size

    @property
    def is_given(self) -> bool:
        """Whether more is known than the record; a request cannot run before it is."""
        return type(self) is not Recorded

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it: its hash, and for people its size."""
        if self.size == (0, 0):
            return {"sha256": self.sha256}
        return {"sha256": self.sha256, "width": self.size[0], "height": self.size[1]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recorded) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        shown = self.name or self.sha256[:12]
        size = "" if self.size == (0, 0) else f", {self.size[0]}x{self.size[1]}"
        return f"{type(self).__name__}({shown}{size})"

    def __deepcopy__(self, memo: Any) -> Recorded:
        return self  # nothing of it changes


def read_record(field: str, value: Any, *, has_size: bool = True) -> Recorded:
    """Return what a JSON record names; a path in JSON is never opened.

    Args:
        field: what errors call it.
        value: the record.
        has_size: whether it is that of a picture.

    Raises:
        ConfigError: it is no such record.
    """
    names = ("sha256", "width", "height") if has_size else ("sha256",)
    accepted = "an object {" + ", ".join(f'"{name}": ...' for name in names) + "}"
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ConfigError.for_field(field, value, accepted)
    sha256, *sides = (value[name] for name in names)
    is_hash = isinstance(sha256, str) and len(sha256) == 64 and not set(sha256) - set(_HEX)
    if not is_hash or any(type(side) is not int or not 0 < side <= 1 << 20 for side in sides):
        raise ConfigError.for_field(field, value, accepted)
    return Recorded(sha256, size=(sides[0], sides[1])) if has_size else Recorded(sha256)


_HEX = "0123456789abcdef"
