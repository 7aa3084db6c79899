"""Records of operations and maps, as `_native.Network` takes them."""

from __future__ import annotations

from typing import TypedDict

from sdengine.backends.native.size_rules import Size

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int64": 8}


class Map(TypedDict):
    """Where a map lies in the arena, in bytes, and how: `stride` values from pixel to pixel."""

    offset: int
    type: str
    images: int
    height: int
    width: int
    channels: int
    stride: int


class Record(TypedDict):
    """One operation; the kernels check it when a network is put together."""

    kind: str
    name: str
    maps: dict[str, Map]
    weights: dict[str, str]
    numbers: dict[str, float]
    words: dict[str, str]
    lists: dict[str, list[int]]


def make_map(offset: int, dtype: str, size: Size, stride: int) -> Map:
    """Return the map of a size at a place."""
    return {
        "offset": offset,
        "type": dtype,
        "images": size.images,
        "height": size.height,
        "width": size.width,
        "channels": size.channels,
        "stride": stride,
    }


def map_size(one: Map) -> Size:
    """Return the size of a map."""
    return Size(one["images"], one["height"], one["width"], one["channels"])


def pixel_strides(size: Size, stride: int) -> list[int]:
    """Return the distances in values along images, height, width and channels."""
    return [size.height * size.width * stride, size.width * stride, stride, 1]


def copy_record(
    name: str,
    size: Size,
    source: tuple[Map, list[int]],
    target: tuple[Map, list[int]],
) -> Record:
    """Return the copy of a map between any types and strides.

    Args:
        name: of the step or port that it serves.
        size: of what is copied.
        source, target: map and its four strides; of the map only place and type count.
    """
    return {
        "kind": "copy",
        "name": name,
        "maps": {"from": source[0], "to": target[0]},
        "weights": {},
        "numbers": {},
        "words": {},
        "lists": {"sizes": list(size), "from_strides": source[1], "to_strides": target[1]},
    }
