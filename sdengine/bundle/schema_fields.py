"""Schema fields: what the models of a bundle's JSON have in common."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ShortText = Annotated[str, Field(max_length=200)]
Positive = Annotated[int, Field(ge=1, le=1 << 20)]
Text = Annotated[str, Field(max_length=2000)]


class Strict(BaseModel):
    """Refuse fields that it does not know, and numbers that are none; immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def checked_relative_path(path: str) -> str:
    """Return the path when it stays inside the folder that it is relative to.

    Args:
        path: POSIX-style relative path, as text; nothing is looked up on disk.

    Raises:
        ValueError: it is absolute, leads upwards, or is not in its plain form.
    """
    plain = PurePosixPath(path)
    if (
        not path
        or len(path) > 500
        or plain.is_absolute()
        or ".." in plain.parts
        or str(plain) != path
        or path == "."
        or any(ord(char) < 32 or char in '\\:*?"<>|' for char in path)
    ):
        raise ValueError(f"{path[:80]!r} is not a plain relative path")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{path[:80]!r} is not a plain relative path") from None
    return path
