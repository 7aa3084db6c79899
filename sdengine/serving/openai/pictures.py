"""Pictures of OpenAI's API: masks told by transparency on the way in, three formats on the way out.

Source: the widely used web UI, which writes its text into EXIF's UserComment as UTF-16.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.images.result import Result
from sdengine.inputs.picture import Picture, Pixels
from sdengine.inputs.recorded import Recorded
from sdengine.serving.openai.fields import check_side

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_MAX_EXIF_BYTES = 65_500  # of a JPEG's segment
_FINE = 95  # from where JPEG keeps colours at full resolution


def mask_of(field: str, picture: Recorded) -> Pixels:
    """Return a mask as requests take it, [H,W], white where a picture is transparent.

    Raises:
        ConfigError: nothing of it is.
    """
    alpha = _alpha(picture)
    if alpha is None or alpha.min() == 255:
        accepted = "a PNG with an alpha channel, transparent where the picture may change"
        raise ConfigError.for_field(field, "a picture without transparent parts", accepted)
    return np.asarray(255 - alpha, np.uint8)


def own_mask(picture: Recorded) -> Pixels | None:
    """Return the mask that a picture with fully transparent parts brings; None of any other."""
    alpha = _alpha(picture)
    return None if alpha is None or alpha.min() > 0 else np.asarray(255 - alpha, np.uint8)


def encoded(result: Result, index: int, output_format: str, compression: int) -> bytes:
    """Return one picture as a file: PNG with all its metadata, else with the web UI's text."""
    if output_format == "png":
        return result.png(index)
    image = Image.fromarray(result.arrays[index])
    check_side(output_format, *image.size)  # outpainted ones are larger than was asked for
    comment = b"UNICODE\0" + result.parameters(index).encode("utf-16-be")
    return _lossy(image, output_format, compression, comment)


def encoded_preview(
    pixels: NDArray[np.uint8], size: tuple[int, int], output_format: str, compression: int
) -> bytes:
    """Return a small picture [h,w,3] as a file of the size that the final one will have."""
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    if output_format != "png":
        return _lossy(image, output_format, compression, b"")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _alpha(picture: Recorded) -> Pixels | None:
    assert isinstance(picture, Picture)
    return picture.pixels[..., 3] if picture.pixels.shape[2] == 4 else None


def _lossy(image: Image.Image, output_format: str, compression: int, comment: bytes) -> bytes:
    exif = Image.Exif()
    if comment:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
        if output_format == "jpeg" and len(exif.tobytes()) > _MAX_EXIF_BYTES:
            exif = Image.Exif()
    options = {"subsampling": 0} if output_format == "jpeg" and compression >= _FINE else {}
    buffer = io.BytesIO()
    image.save(buffer, output_format.upper(), quality=compression, exif=exif, **options)
    return buffer.getvalue()
