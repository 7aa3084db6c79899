"""Enlarging of pictures as the web UI's extras do it: by a factor or to a size, with one or two."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.inputs.picture import Picture, Pixels, read_picture
from sdengine.inputs.resize import resized
from sdengine.inputs.upscaler import open_upscaler, read_upscaler, upscaled_to
from sdengine.serving.service import Service
from sdengine.serving.web_ui.fields import Extras
from sdengine.serving.web_ui.requests import upscaler_path

_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
_NOTHING = ("", "none")


def refuse_faces(fields: Extras) -> None:
    """Refuse what restores faces.

    Raises:
        ConfigError: it is asked for.
    """
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if getattr(fields, name):
            accepted = "0, because the server has nothing that restores faces"
            raise ConfigError.for_field(name, getattr(fields, name), accepted)


def enlarged(fields: Extras, field: str, value: Any, service: Service) -> tuple[Image.Image, str]:
    """Return a picture enlarged as asked for, and a sentence on how.

    Args:
        fields: of the body.
        field: what errors call the picture.
        value: in base64.
        service: with limits and upscalers.

    Raises:
        ConfigError: the picture, an upscaler or the size is not accepted.
    """
    picture = read_picture(field, service.pictures(field, value))
    assert isinstance(picture, Picture)
    pixels = picture.pixels
    if fields.upscaler_1.lower() in _NOTHING:  # as in the web UI, whatever the size asked for
        return Image.fromarray(pixels), "The picture is as it was: upscaler_1 is None."
    cover, size = _sizes(fields, *picture.size)
    if cover[0] * cover[1] > service.limits.max_pixels:
        shown = f"{cover[0]}x{cover[1]}"
        accepted = f"at most {service.limits.max_pixels} pixels on this server"
        raise ConfigError.for_field("upscaling_resize", shown, accepted)
    found = _by_one("upscaler_1", fields.upscaler_1, pixels, cover, service)
    share = fields.extras_upscaler_2_visibility
    if share and fields.upscaler_2.lower() not in _NOTHING:
        other = _by_one("upscaler_2", fields.upscaler_2, pixels, cover, service)
        mixed = (1 - share) * found.astype(np.float32) + share * other
        found = np.rint(mixed).astype(np.uint8)
    if size != cover:
        left, top = ((whole - part) // 2 for whole, part in zip(cover, size, strict=True))
        found = found[top : top + size[1], left : left + size[0]]
    shown = f"{picture.size[0]}x{picture.size[1]} to {size[0]}x{size[1]}"
    return Image.fromarray(np.ascontiguousarray(found)), f"Enlarged from {shown}."


def _sizes(fields: Extras, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size to which a picture is enlarged, and that of its middle which is wanted."""
    if fields.resize_mode == 0:
        factor = fields.upscaling_resize
        size = max(1, int(width * factor)), max(1, int(height * factor))
        return size, size
    wanted = fields.upscaling_resize_w, fields.upscaling_resize_h
    if wanted[0] * height >= wanted[1] * width:
        cover = wanted[0], max(wanted[1], wanted[0] * height // width)
    else:
        cover = max(wanted[0], wanted[1] * width // height), wanted[1]
    return cover, wanted if fields.upscaling_crop else cover


def _by_one(
    field: str, name: str, pixels: Pixels, size: tuple[int, int], service: Service
) -> Pixels:
    if name.lower() in _FILTERS:
        kind = _FILTERS[name.lower()]
        return np.asarray(Image.fromarray(pixels).resize(size, kind))
    path = upscaler_path(service, field, name, ["Lanczos", "Nearest"])
    upscaler = open_upscaler(field, read_upscaler(field, path))
    factor, (height, width) = upscaler.factor, pixels.shape[:2]
    while width < size[0] or height < size[1]:
        width, height = width * factor, height * factor
        if width * height > service.limits.max_pixels * factor * factor:
            accepted = "a size of about the picture's proportions"
            raise ConfigError.for_field("upscaling_resize", f"{size[0]}x{size[1]}", accepted)
    return resized_with_alpha(upscaled_to(upscaler, pixels, *size), *size)


def resized_with_alpha(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return [h,w,3|4] pixels at another size by Lanczos' filter."""
    if pixels.shape[2] == 3:
        return resized(pixels, width, height, "stretch")
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
