"""PNG files: images with their metadata written to them, all of them or none."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError, OutputError
from sdengine.storage.temporary import remove_abandoned, temporary_file
from sdengine.storage.whole_file import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image


def encode_png(image: Image, texts: Mapping[str, str]) -> bytes:
    """Return an image as the content of a PNG file.

    Args:
        image: RGB.
        texts: by key of their text chunk, in the order in which they are written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        if text.isascii():  # as plain text, because some readers know nothing else
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def output_paths(path: str | os.PathLike[str], count: int) -> list[Path]:
    """Return the files that `count` images are written to."""
    target = _checked_path(path)
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}-{i + 1}{target.suffix}") for i in range(count)]


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a place that cannot be written, before the work of making the images."""
    target = _checked_path(path)
    try:
        folder = target.parent
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise OutputError(f"folder {str(folder)!r} {what}; make it or choose another.")
        if target.is_dir():
            raise OutputError(f"{str(target)!r} is a folder; give a file name.")
        # Permission bits do not tell a read-only mount or a full table of files: try it.
        with temporary_file(target):
            pass
    except OSError as error:
        raise OutputError(f"{str(target)[:200]!r} cannot be written: {error.strerror}.") from None


def write_all(targets: Sequence[Path], contents: Sequence[bytes]) -> None:
    """Write files so that either all of them appear or none.

    Raises:
        OutputError: one cannot be written.
    """
    try:
        _tidy(targets[0].parent)
        with contextlib.ExitStack() as written:
            for target, content in zip(targets, contents, strict=True):
                file = written.enter_context(whole_file(target))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a full disk may show itself only here
    except OSError as error:
        raise OutputError(
            f"{str(targets[0])!r} cannot be written: {error.strerror}. Nothing was left behind."
        ) from error


@functools.cache
def _tidy(folder: Path) -> None:
    """Remove what killed writers left, once a process: a folder may hold many pictures."""
    remove_abandoned(folder)


def _checked_path(path: str | os.PathLike[str]) -> Path:
    try:
        target = Path(os.fsdecode(path))
    except TypeError:
        raise ConfigError.for_field("output", path, "a file name ending in .png") from None
    if target.suffix.lower() != ".png" or "\0" in str(target):
        raise ConfigError.for_field("output", str(path), "a file name ending in .png")
    return target
