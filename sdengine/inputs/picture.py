"""Picture that a request starts from: read as data, turned upright, known by its hash."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.storage.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 1 << 27
MAX_FILE_BYTES = 1 << 29
ACCEPTED = (
    "the path of a picture, a PIL image, a uint8 array [H,W], [H,W,3] or [H,W,4], or a file's bytes"
)


class Picture:
    """Pixels that do not change, and the SHA-256 that names them in metadata.

    Args:
        pixels: [H,W,3] RGB or [H,W,4] RGBA uint8; None where only the record of a picture is
            known, whose request cannot run before the picture is given again.
        sha256: of the file that it was read from; of its size and pixels where there was none.
        name: of the file, for people; perhaps empty.
        size: width and height in pixels, where there are no pixels to tell.
    """

    def __init__(
        self, pixels: Pixels | None, sha256: str, name: str = "", size: tuple[int, int] = (0, 0)
    ) -> None:
        if pixels is not None:
            pixels.flags.writeable = False
            size = (pixels.shape[1], pixels.shape[0])
        self.pixels = pixels
        self.sha256 = sha256
        self.name = name
        self.size = size

    @property
    def is_given(self) -> bool:
        """Whether the pixels are known."""
        return self.pixels is not None

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it: its hash, and for people its size."""
        return {"sha256": self.sha256, "width": self.size[0], "height": self.size[1]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Picture({self.name or self.sha256[:12]}, {self.size[0]}x{self.size[1]})"

    def __deepcopy__(self, memo: Any) -> Picture:
        return self  # nothing of it changes


def read_picture(field: str, value: Any) -> Picture:
    """Return a picture, whatever it was given as.

    EXIF's orientation is applied, palettes and transparent colours become RGBA, 16 bits become 8,
    CMYK becomes RGB.

    Args:
        field: what errors call it.
        value: a Picture, a path, a file's content, a PIL image or an array; see ACCEPTED.

    Raises:
        ConfigError: it is none of these, is damaged, animated, or of more than MAX_PIXELS pixels.
    """
    if isinstance(value, Picture):
        return value
    if isinstance(value, (str, os.PathLike)):
        return _from_file(field, Path(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_bytes(field, bytes(value), "")
    if isinstance(value, np.ndarray):
        return _from_pixels(_checked_array(field, value))
    if type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "getexif"):
        return _from_pixels(_decoded(field, value, "it"))
    raise ConfigError.for_field(field, value, ACCEPTED)


def read_record(field: str, value: Any) -> Picture:
    """Return the picture of a JSON record, without pixels; a path in JSON is never opened.

    Raises:
        ConfigError: it is no such record.
    """
    accepted = 'an object {"sha256": ..., "width": ..., "height": ...}'
    if not isinstance(value, Mapping) or set(value) != {"sha256", "width", "height"}:
        raise ConfigError.for_field(field, value, accepted)
    sha256, sides = value["sha256"], (value["width"], value["height"])
    is_hash = isinstance(sha256, str) and len(sha256) == 64 and not set(sha256) - set(_HEX)
    if not is_hash or any(type(side) is not int or not 0 < side <= 1 << 20 for side in sides):
        raise ConfigError.for_field(field, value, accepted)
    return Picture(None, sha256, size=sides)


_HEX = "0123456789abcdef"


def _from_file(field: str, path: Path) -> Picture:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ConfigError.for_field(
                    field, str(path), f"a file of at most {MAX_FILE_BYTES >> 20} MiB"
                )
            content = file.read(size)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{field}: {str(path)[:200]!r} cannot be read: {reason}.") from None
    return _from_bytes(field, content, path.name)


def _from_bytes(field: str, content: bytes, name: str) -> Picture:
    from PIL import Image, UnidentifiedImageError

    what = repr(name[:200]) if name else "the content"
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # the limit is ours
            pixels = _decoded(field, image, what)
    except UnidentifiedImageError:
        raise ConfigError(
            f"{field}: {what} is no picture that can be read; accepted are {', '.join(FORMATS)}."
        ) from None
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"{field}: {what} is damaged: {str(error)[:120].rstrip('.')}.") from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{field}: {what} {_TOO_LARGE}") from None
    return Picture(pixels, hashlib.sha256(content).hexdigest(), name)


_TOO_LARGE = f"has more pixels than are accepted; at most {MAX_PIXELS}."


def _decoded(field: str, image: Image, what: str) -> Pixels:
    from PIL import Image as images
    from PIL import ImageOps

    if image.width * image.height > MAX_PIXELS or 0 in image.size:
        raise ConfigError(f"{field}: {what} is {image.width}x{image.height}; it {_TOO_LARGE}")
    if getattr(image, "n_frames", 1) != 1:
        raise ConfigError(f"{field}: {what} has {image.n_frames} pictures in it; give one of them.")  # type: ignore[attr-defined]
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)  # before any conversion, which drops the tag
        return np.array(_eight_bits(field, upright, what))
    except (OSError, ValueError, SyntaxError, EOFError, images.DecompressionBombError) as error:
        raise ConfigError(
            f"{field}: {what} is damaged or of an unknown kind: {str(error)[:120].rstrip('.')}."
        ) from None


def _eight_bits(field: str, image: Image, what: str) -> Image:
    """Return an image as RGB, or as RGBA where some of it may be transparent."""
    from PIL import Image as images

    if image.mode.startswith("I"):  # 16 bits, which a plain conversion would clip at 255
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return images.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ConfigError(f"{field}: {what} has floating-point pixels; give 8 or 16 bits.")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _checked_array(field: str, array: NDArray[Any]) -> Pixels:
    shape = array.shape
    known = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not known or 0 in shape or shape[0] * shape[1] > MAX_PIXELS:
        raise ConfigError.for_field(field, f"an array {list(shape)} of {array.dtype}", ACCEPTED)
    if len(shape) == 2 or shape[2] == 1:
        return np.repeat(array.reshape(*shape[:2], 1), 3, axis=2)
    return array.copy()


def _from_pixels(pixels: Pixels) -> Picture:
    named = hashlib.sha256(f"{pixels.shape}".encode())
    named.update(np.ascontiguousarray(pixels))
    return Picture(pixels, named.hexdigest())
