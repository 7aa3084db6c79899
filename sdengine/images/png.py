"""PNG files: images with their metadata written to them, all of them or none."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError, OutputError

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
        handle, name = _temporary_beside(target)
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise OutputError(f"{str(target)[:200]!r} cannot be written: {error.strerror}.") from None


def write_all(targets: Sequence[Path], contents: Sequence[bytes]) -> None:
    """Write files so that either all of them appear or none.

    Raises:
        OutputError: one cannot be written.
    """
    temporary: list[str] = []
    try:
        for target, content in zip(targets, contents, strict=True):
            handle, name = _temporary_beside(target)
            temporary.append(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a full disk may show itself only here
        for name, target in zip(list(temporary), targets, strict=True):
            os.replace(name, target)
            temporary.remove(name)
    except OSError as error:
        raise OutputError(
            f"{str(targets[0])!r} cannot be written: {error.strerror}. Nothing was left behind."
        ) from error
    finally:
        for name in temporary:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _checked_path(path: str | os.PathLike[str]) -> Path:
    try:
        target = Path(os.fsdecode(path))
    except TypeError:
        raise ConfigError.for_field("output", path, "a file name ending in .png") from None
    if target.suffix.lower() != ".png" or "\0" in str(target):
        raise ConfigError.for_field("output", str(path), "a file name ending in .png")
    return target


def _temporary_beside(target: Path) -> tuple[int, str]:
    # Not tempfile: its files are private, and the umask cannot be read without changing it.
    name = str(target.parent / f".sdengine-{secrets.token_hex(8)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    return os.open(name, flags, 0o666), name
