"""Depth map of a request: one value a pixel, at whatever precision its file has."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.inputs.interpolation import interpolated
from sdengine.inputs.picture import MAX_PIXELS, opened, read_file
from sdengine.inputs.recorded import Recorded

Values = NDArray[np.float32]
ACCEPTED = (
    "a depth map, near large: the path or content of a picture of 8 or 16 bits or of a TIFF of "
    "floats, a PIL image, or an array of numbers [H,W]"
)


_COLOURED = 4  # of 255, by which channels differ on the average; grey in a JPEG is below it


class DepthMap(Recorded):
    """Values [H,W] fp32 that do not change; larger is nearer.

    Args:
        values, sha256, name: as in `Recorded`.
        coloured: its file has colours, so that it is a photograph rather than a map.
    """

    def __init__(
        self, values: Values, sha256: str, name: str = "", *, coloured: bool = False
    ) -> None:
        super().__init__(sha256, name, (values.shape[1], values.shape[0]))
        values.flags.writeable = False
        self.values = values
        self.coloured = coloured


def read_depth(field: str, value: Any) -> Recorded:
    """Return a depth map, whatever it was given as; colours count by their grey value.

    Args:
        field: what errors call it.
        value: see ACCEPTED.

    Raises:
        ConfigError: it is none, is damaged, or holds NaN or infinity.
    """
    if isinstance(value, DepthMap) or type(value) is Recorded:
        return value
    if isinstance(value, (str, os.PathLike)):
        return _from_bytes(field, read_file(field, Path(value)), Path(value).name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_bytes(field, bytes(value), "")
    if isinstance(value, np.ndarray):
        return _from_values(_checked(field, value))
    if type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "getexif"):
        return _from_values(_checked(field, _grey(value)))
    raise ConfigError.for_field(field, value, ACCEPTED)


def depth_channel(depth: Recorded, height: int, width: int, *, invert: bool) -> Values:
    """Return a depth map as a U-Net reads it.

    Resized first and then brought to [-1,1], so that no value leaves the range; a map that is the
    same everywhere becomes 0.

    Args:
        depth: given.
        height, width: of the latents.
        invert: smaller is nearer.

    Returns:
        [1,1,height,width] fp32.
    """
    assert isinstance(depth, DepthMap)
    found = interpolated(depth.values.astype(np.float64), height, width, "bicubic")
    low, high = found.min(), found.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return np.zeros((1, 1, height, width), np.float32)
    found = 2 * (found - low) / (high - low) - 1
    return np.asarray(-found if invert else found, np.float32)[None, None]


def has_colours(pixels: NDArray[np.uint8]) -> bool:
    """Say whether [H,W,3] or [H,W,4] are a coloured picture, which is hardly a depth map."""
    return bool(np.ptp(pixels[..., :3], axis=2).mean() > _COLOURED)


def depth_warnings(field: str, depth: Recorded) -> tuple[str, ...]:
    """Say in sentences why a depth map may not say what it should.

    Args:
        field: what the sentences call it.
        depth: given, or only a record.
    """
    if not isinstance(depth, DepthMap):
        return ()
    if np.ptp(depth.values) == 0:
        return (f"{field}: the map is the same everywhere, so that it says nothing.",)
    return (coloured_warning(field),) if depth.coloured else ()


def coloured_warning(field: str) -> str:
    """Say that a picture in colours is taken for a depth map."""
    return (
        f"{field}: the picture has colours, of which only the grey value counts as depth. A map "
        "is not estimated from a photograph here; a network does that, as in `sdengine preprocess "
        "onnx`."
    )


def _from_bytes(field: str, content: bytes, name: str) -> DepthMap:
    what = repr(name[:200]) if name else "the content"
    with opened(field, content, what) as image:
        values = _checked(field, _grey(image))
        coloured = _is_coloured(image)
    return DepthMap(values, hashlib.sha256(content).hexdigest(), name, coloured=coloured)


def _grey(image: Any) -> NDArray[Any]:
    from PIL import ImageOps

    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":  # their own values, not 8 bits of them
        return np.asarray(upright)
    return np.asarray(upright.convert("L"))


def _is_coloured(image: Any) -> bool:
    if image.mode.startswith(("I", "F", "L", "1")):
        return False
    return has_colours(np.asarray(image.convert("RGB")))


def _checked(field: str, array: NDArray[Any]) -> Values:
    shape = array.shape
    if array.ndim != 2 or 0 in shape or array.dtype.kind not in "uif" or array.size > MAX_PIXELS:
        shown = f"an array {list(shape)} of {array.dtype}"
        raise ConfigError.for_field(field, shown, ACCEPTED)
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise ConfigError.for_field(field, "NaN or infinity", "finite values")
    return values


def _from_values(values: Values) -> DepthMap:
    named = hashlib.sha256(f"depth {values.shape}".encode())
    named.update(values.tobytes())
    return DepthMap(values, named.hexdigest())
