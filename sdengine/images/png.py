"""PNG files: images with their metadata written to them, all of them or none."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError, OutputError
from sdengine.storage.temporary import remove_abandoned, temporary_file
from sdengine.storage.whole_file import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image

# Of zlib: smooth pictures take half the time of its default and up to 7 % more bytes, others less
# of either.
_COMPRESS_LEVEL = 4


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
    image.save(buffer, "PNG", pnginfo=info, compress_level=_COMPRESS_LEVEL)
    return buffer.getvalue()


def output_paths(
    path: str | os.PathLike[str], count: int, *, overwrite: bool = False
) -> list[Path]:
    """Return the files that `count` images are written to.

    One image is called as the path says, those of a batch have numbers from 1. Where one of these
    is there and shall not be replaced, all get the numbers behind the highest that is in use.
    """
    target = _checked_path(path)
    first = [target] if count == 1 else _numbered(target, 1, count)
    if overwrite or not any(os.path.lexists(file) for file in first):
        return first
    number = 1 + max(_numbers_in_use(target), default=0)
    while any(os.path.lexists(file) for file in _numbered(target, number, count)):
        number += 1  # file systems may know names under other spellings
    return _numbered(target, number, count)


def check_output(path: str | os.PathLike[str], field: str = "output") -> None:
    """Refuse a place that cannot be written, before the work of making the images.

    Args:
        path: of a PNG file.
        field: what gave it, for messages.
    """
    target = _checked_path(path, field)
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


def write_images(
    path: str | os.PathLike[str], contents: Sequence[bytes], *, overwrite: bool = False
) -> list[Path]:
    """Write images so that either all of them appear or none, and return their files.

    Args:
        path: see `output_paths`.
        contents: of the files.
        overwrite: replace files; else no file that is there is, not even one that another process
            writes meanwhile.

    Raises:
        OutputError: one cannot be written.
    """
    while True:
        targets = output_paths(path, len(contents), overwrite=overwrite)
        try:
            _write_all(targets, contents, overwrite)
        except FileExistsError:
            continue  # somebody was quicker: take the next numbers
        except OSError as error:
            raise OutputError(
                f"{str(targets[0])!r} cannot be written: {error.strerror}. Nothing was left behind."
            ) from error
        return targets


def _write_all(targets: Sequence[Path], contents: Sequence[bytes], overwrite: bool) -> None:
    _tidy(targets[0].parent)
    taken: list[Path] = []
    try:
        with contextlib.ExitStack() as written:
            for target, content in zip(targets, contents, strict=True):
                file = written.enter_context(whole_file(target))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a full disk may show itself only here
            for target in targets if not overwrite else ():
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                taken.append(target)
        taken.clear()
    finally:
        for left in taken:
            with contextlib.suppress(OSError):
                left.unlink()


@functools.cache
def _tidy(folder: Path) -> None:
    """Remove what killed writers left, once a process: a folder may hold many pictures."""
    remove_abandoned(folder)


def _numbered(target: Path, first: int, count: int) -> list[Path]:
    numbers = range(first, first + count)
    return [target.with_name(f"{target.stem}-{number}{target.suffix}") for number in numbers]


def _numbers_in_use(target: Path) -> Iterator[int]:
    pattern = re.compile(rf"{re.escape(target.stem)}-(\d{{1,18}}){re.escape(target.suffix)}")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(target.parent):
            if (match := pattern.fullmatch(name)) is not None:
                yield int(match[1])


def _checked_path(path: str | os.PathLike[str], field: str = "output") -> Path:
    try:
        target = Path(os.fsdecode(path))
    except TypeError:
        raise ConfigError.for_field(field, path, "a file name ending in .png") from None
    if target.suffix.lower() != ".png" or "\0" in str(target):
        raise ConfigError.for_field(field, str(path), "a file name ending in .png")
    return target
