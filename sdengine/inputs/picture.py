"""Picture that a request starts from: read as data, turned upright, known by its hash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.inputs.recorded import Recorded
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


class Picture(Recorded):
    """Pixels that do not change.

    Args:
        pixels: [H,W,3] RGB or [H,W,4] RGBA uint8.
        sha256, name: as in `Recorded`.
    """

    def __init__(self, pixels: Pixels, sha256: str, name: str = "") -> None:
        super().__init__(sha256, name, (pixels.shape[1], pixels.shape[0]))
        pixels.flags.writeable = False
        self.pixels = pixels


def read_picture(field: str, value: Any) -> Recorded:
    """Return a picture, whatever it was given as.

    EXIF's orientation is applied, palettes and transparent colours become RGBA, 16 bits become 8,
    CMYK becomes RGB.

    Args:
        field: what errors call it.
        value: a Picture, a path, a file's content, a PIL image or an array; see ACCEPTED.

    Raises:
        ConfigError: it is none of these, is damaged, animated, or of more than MAX_PIXELS pixels.
    """
    if isinstance(value, Picture) or type(value) is Recorded:
        return value
    if isinstance(value, (str, os.PathLike)):
        return _from_bytes(field, read_file(field, Path(value)), Path(value).name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _from_bytes(field, bytes(value), "")
    if isinstance(value, np.ndarray):
        return _from_pixels(_checked_array(field, value))
    if type(value).__module__.partition(".")[0] == "PIL" and hasattr(value, "getexif"):
        _check(field, value, "it")
        return _from_pixels(_decoded(field, value, "it"))
    raise ConfigError.for_field(field, value, ACCEPTED)


def read_file(field: str, path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a regular file of at most so many bytes.

    Raises:
        ConfigError: there is none.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                most = f"{max_bytes >> 20} MiB" if max_bytes >> 20 else f"{max_bytes} bytes"
                raise ConfigError.for_field(field, str(path), f"a file of at most {most}")
            return file.read(size)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{field}: {str(path)[:200]!r} cannot be read: {reason}.") from None


def _from_bytes(field: str, content: bytes, name: str) -> Picture:
    what = repr(name[:200]) if name else "the content"
    with opened(field, content, what) as image:
        pixels = _decoded(field, image, what)
    return Picture(pixels, hashlib.sha256(content).hexdigest(), name)


@contextlib.contextmanager
def opened(field: str, content: bytes, what: str) -> Iterator[Image]:
    """Open the content of a picture's file, not yet decoded, as a PIL image of bounded size.

    Args:
        field, what: what errors call it.
        content: of the file.

    Raises:
        ConfigError: it is no single picture, or damaged, also while it is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit is ours
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check(field, image, what)
                yield image
    except ConfigError:  # a ValueError that says what is wrong already
        raise
    except UnidentifiedImageError:
        raise ConfigError(
            f"{field}: {what} is no picture that can be read; accepted are {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise ConfigError(f"{field}: {what} {_TOO_LARGE}") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ConfigError(
            f"{field}: {what} is damaged or of an unknown kind: {str(error)[:120].rstrip('.')}."
        ) from None


_TOO_LARGE = f"has more pixels than are accepted; at most {MAX_PIXELS}."


def _check(field: str, image: Image, what: str) -> None:
    if image.width * image.height > MAX_PIXELS or 0 in image.size:
        raise ConfigError(f"{field}: {what} is {image.width}x{image.height}; it {_TOO_LARGE}")
    if _has_second(image):
        raise ConfigError(f"{field}: {what} has several pictures in it; give one of them.")


def _has_second(image: Image) -> bool:
    """Say whether another picture follows, of which no more than its head is read.

    To count them all takes a time that grows with the square of their number in a TIFF.
    """
    try:
        image.seek(1)
    except EOFError:
        return False
    except (TypeError, KeyError, OSError, ValueError, SyntaxError):  # it is there, and damaged
        return True
    return True


def _decoded(field: str, image: Image, what: str) -> Pixels:
    from PIL import ImageOps

    image.load()
    upright = ImageOps.exif_transpose(image)  # before any conversion, which drops the tag
    return np.array(_eight_bits(field, upright, what))


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
        return np.asarray(np.repeat(array.reshape(*shape[:2], 1), 3, axis=2))
    return np.array(array)


def _from_pixels(pixels: Pixels) -> Picture:
    named = hashlib.sha256(f"{pixels.shape}".encode())
    named.update(pixels.tobytes())
    return Picture(pixels, named.hexdigest())
