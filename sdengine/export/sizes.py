"""Sizes that networks are built or exported for, checked."""

from __future__ import annotations

from collections.abc import Sequence

from sdengine.errors import ConfigError

MAX_SIDE = 4096
MAX_BATCH = 64


def parse_sizes(resolutions: Sequence[int | tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sides of squares, or pairs of width and height, as pairs; each once.

    Raises:
        ConfigError: one is neither, or out of range.
    """
    accepted = f"sides, or pairs of width and height, from 8 to {MAX_SIDE} pixels"
    try:
        pairs = [(size, size) if isinstance(size, int) else tuple(size) for size in resolutions]
    except TypeError:
        raise ConfigError.for_field("resolutions", resolutions, accepted) from None
    sizes: list[tuple[int, int]] = []
    for pair in pairs:
        valid = len(pair) == 2 and all(type(s) is int and 8 <= s <= MAX_SIDE for s in pair)
        if not valid:
            raise ConfigError.for_field("resolutions", resolutions, accepted)
        if pair not in sizes:
            sizes.append((pair[0], pair[1]))
    if not sizes:
        raise ConfigError.for_field("resolutions", resolutions, accepted)
    return sizes


def check_batch(batch: int) -> None:
    """Refuse a batch that is no number of images.

    Raises:
        ConfigError: it is none, or out of range.
    """
    if type(batch) is not int or not 1 <= batch <= MAX_BATCH:
        raise ConfigError.for_field("batch", batch, f"an integer from 1 to {MAX_BATCH}")


def check_multiples(sizes: list[tuple[int, int]], multiple: int) -> None:
    """Refuse sizes in pixels that the U-Net's levels do not fit into.

    Raises:
        ConfigError: a side is not a multiple of what the U-Net needs.
    """
    for width, height in sizes:
        if width % multiple or height % multiple:
            raise ConfigError.for_field(
                "resolutions",
                f"{width}x{height}",
                f"multiples of {multiple} pixels for this checkpoint",
                f"The nearest is {_nearest(width, multiple)}x{_nearest(height, multiple)}.",
            )


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
