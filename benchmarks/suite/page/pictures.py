"""View of parity: each side's picture, how it differs from eager torch's, and errors in numbers."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.benchmarks.suite.page.figures import ERROR_NAMES, decibels
from sdengine.benchmarks.suite.page.gathered import REFERENCE, Together, marked
from sdengine.benchmarks.suite.page.markup import Table, escaped, paragraph, table

if TYPE_CHECKING:
    from PIL.Image import Image

# Of the page's copies; originals may be of any size that the suite is asked for.
_SIDE = 256
_MOST_PIXELS = 4096 * 4096
_MOST_BYTES = 64 << 20
_TIMES = 10


def parity(one: Together) -> str:
    """Return a setting's pictures and errors."""
    found = {label: picture for label in one.measured if (picture := _picture(one, label))}
    html = ""
    if found:
        reference = found.get(REFERENCE)
        cards = "".join(
            _card(one, label, picture, None if label == REFERENCE else reference)
            for label, picture in _reference_first(found)
        )
        said = f"The first picture of each side, and its difference to {REFERENCE} times {_TIMES}."
        html += f'<h4>Pictures</h4>{paragraph(said)}<div class="pictures">{cards}</div>'
    errors = _errors(one)
    if errors.rows:
        said = (
            f"Relative root mean squares against {REFERENCE}: of each network on equal inputs, and "
            "of the latents of a request. PSNR is that of the picture."
        )
        html += f"<h4>Errors</h4>{paragraph(said)}{table(errors, 'Errors')}"
    return html or paragraph("No pictures or errors were recorded.")


def _reference_first(found: dict[str, Image]) -> Iterator[tuple[str, Image]]:
    yield from sorted(found.items(), key=lambda entry: entry[0] != REFERENCE)


def _card(one: Together, label: str, picture: Image, reference: Image | None) -> str:
    images = _image(picture, f"Picture of {label}")
    if reference is not None and reference.size == picture.size:
        images += _image(_difference(picture, reference), f"Difference of {label} to {REFERENCE}")
    psnr = one.sides[label].get("errors", {}).get("image_psnr_db")
    said = "the reference" if label == REFERENCE else "" if psnr is None else decibels(psnr)
    name = ' class="ours"' if label in one.ours else ""
    return (
        f"<figure{name}><div>{images}</div><figcaption><strong>{escaped(label)}</strong> "
        f"{escaped(said)}</figcaption></figure>"
    )


def _picture(one: Together, label: str) -> Image | None:
    """Return a side's picture; None where there is none, or none that can be shown."""
    name = one.sides[label].get("picture")
    # A record may name a file beside it, and nothing else of the machine.
    if not name or Path(name).name != name or "\0" in name or "\\" in name:
        return None
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    path = one.folders[label] / name
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        with pillow.open(path, formats=["PNG"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            shown: Image = image.convert("RGB")
            return shown
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        pillow.DecompressionBombError,
    ):
        return None


def _difference(picture: Image, reference: Image) -> Image:
    from PIL import ImageChops

    return ImageChops.difference(picture, reference).point(
        [min(255, _TIMES * (value % 256)) for value in range(3 * 256)]
    )


def _image(picture: Image, said: str) -> str:
    """Return a picture as an element that holds it."""
    from PIL.Image import Resampling

    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    content = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{content}" width="{small.width}" height="{small.height}"'
        f' alt="{escaped(said)}">'
    )


def _errors(one: Together) -> Table:
    rows = []
    for label, side in one.measured.items():
        found = side.get("errors", {})
        if not found:
            continue
        psnr = found.get("image_psnr_db")
        rows.append(
            [
                label,
                *(_error(found.get(name)) for name in ERROR_NAMES),
                "" if psnr is None else decibels(psnr),
            ]
        )
    return Table(("Side", *ERROR_NAMES.values(), "PSNR"), rows, marked(one, rows))


def _error(value: float | None) -> str:
    if value is None:
        return ""
    return "0" if value == 0 else f"{value:.1e}"
