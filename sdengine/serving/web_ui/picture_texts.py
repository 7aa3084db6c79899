"""Texts of pictures that clients send, as the web UI's png-info tells them."""

from __future__ import annotations

from typing import Any

from sdengine.images.exif_text import COMMENT, Damaged, tiff_texts
from sdengine.images.metadata import PARAMETERS
from sdengine.images.web_ui_text import labelled_values
from sdengine.inputs.picture import opened

_MOST_TEXTS = 100
_HEADER = b"Exif\0\0"


def texts_of(field: str, content: bytes) -> dict[str, Any]:
    """Return the text of parameters, the other texts, and what the first says by its labels.

    Args:
        field: what errors call the picture.
        content: of its file, its size checked.

    Raises:
        ConfigError: it is damaged.
    """
    with opened(field, content, "the content") as image:
        image.load()  # texts may stand behind the pixels
        found = dict(image.info)
    items = {
        str(name): str(value)
        for name, value in list(found.items())[:_MOST_TEXTS]
        if isinstance(value, str)
    }
    info = items.pop(PARAMETERS, None)
    if info is None and (comment := _comment(found.get("exif"))):
        info = items["exif comment"] = comment
    parameters = labelled_values(info) if info else {}
    return {"info": info or "", "items": items, "parameters": parameters}


def _comment(exif: object) -> str | None:
    if not isinstance(exif, bytes):
        return None
    try:
        return tiff_texts(exif.removeprefix(_HEADER)).get(COMMENT)
    except Damaged:
        return None
