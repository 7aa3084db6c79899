"""Byte sizes as people write them: 8GiB, 24 GB, 500MB."""

from __future__ import annotations

import re

from sdengine.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}  # fmt: skip


def parse_bytes(field: str, text: str) -> int:
    """Read "8GiB", "8 GB", "500MB" or a number of bytes.

    Args:
        field: what is read, for the message.
        text: as it was written.

    Raises:
        ConfigError: it is none of these.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?)?b?\s*", text.lower())
    number = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    if not 0 < number < 1 << 50:
        raise ConfigError.for_field(field, text, "a size such as 8GiB, 24 GB or 500MB")
    return number
