"""Constants of OpenVINO's intermediate representation: weights by name, mapped from its file."""

from __future__ import annotations

import math
import mmap
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BundleError

MAX_XML_BYTES = 256 << 20
# bf16 as its bits, as in files of tensors.
_TYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


def ir_constants(xml: BinaryIO, weights: BinaryIO, where: str) -> dict[str, NDArray[Any]]:
    """Return the constants of floats, read-only, by their layers' names.

    Args:
        xml, weights: the two files of a network, open; they may be closed afterwards.
        where: for messages.

    Raises:
        BundleError: they are damaged, or a constant is claimed that is not there.
    """
    try:
        content = xml.read(MAX_XML_BYTES + 1)
        if len(content) > MAX_XML_BYTES:
            raise BundleError(f"{where}: its .xml is larger than {MAX_XML_BYTES} bytes.")
        root = ET.fromstring(content)
        data = np.frombuffer(mmap.mmap(weights.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (ET.ParseError, OSError, ValueError) as error:
        raise BundleError(f"{where}: it cannot be read: {str(error)[:120]}.") from None
    return dict(_constants(root, data, where))


def _constants(
    root: ET.Element, data: NDArray[np.uint8], where: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    for layer in root.iterfind("layers/layer"):
        described = layer.find("data")
        if layer.get("type") != "Const" or described is None:
            continue
        kind = _TYPES.get(described.get("element_type", ""))
        name = layer.get("name", "")
        if kind is None:
            continue
        try:
            text = described.get("shape", "")
            shape = tuple(int(side) for side in text.split(",") if side.strip())
            first, size = int(described.get("offset", "")), int(described.get("size", ""))
        except ValueError:
            raise BundleError(f"{where}: constant {name[:120]!r} is malformed.") from None
        wanted = math.prod(shape) * np.dtype(kind).itemsize
        if min(shape, default=1) < 0 or first < 0 or size != wanted or first + size > len(data):
            raise BundleError(f"{where}: constant {name[:120]!r} claims what is not there.")
        flat = data[first : first + size]
        if first % np.dtype(kind).itemsize:
            flat = flat.copy()
        yield name, flat.view(kind).reshape(shape)
