"""Pictures to train on: found in a folder, with what is written of each.

Source: the captions beside pictures that trainers of LoRAs read, and the `imagefolder` of the
datasets library: metadata.csv or metadata.jsonl with a column `file_name`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs.picture import Picture, Pixels, read_file, read_picture
from sdengine.inputs.resize import flattened

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
TEXT_COLUMNS = ("text", "caption", "prompt")
HINT_COLUMNS = ("conditioning_image", "conditioning_image_file_name", "hint")
_NAME_COLUMNS = ("file_name", "image_file_name", "image")
_TABLES = (".csv", ".jsonl")
_MAX_PICTURES = 1_000_000
_MAX_TEXT_BYTES = 1 << 16
_MAX_TABLE_BYTES = 1 << 28
_WHITE = (255, 255, 255)
# What the words of `--template object` and `--template style` stand for.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "object": (
        "a photo of {name}",
        "a picture of {name}",
        "a close view of {name}",
        "a bright photo of {name}",
        "a dark photo of {name}",
        "one {name}",
        "{name} seen from afar",
        "a drawing of {name}",
    ),
    "style": (
        "a picture in the style of {name}",
        "a painting in the style of {name}",
        "a drawing in the style of {name}",
        "{caption}, in the style of {name}",
        "something in the style of {name}",
    ),
}


@dataclass(frozen=True)
class Example:
    """A picture of the data, not yet decoded.

    Args:
        path: of the picture.
        caption: what is written of it; None where nothing is.
        hint: path of what a control network reads; None where none is given.
    """

    path: Path
    caption: str | None = None
    hint: Path | None = None


def find_examples(folder: Path, hints: Path | None = None) -> list[Example]:
    """Find the pictures of a folder and the folders in it, in the order of their paths.

    A caption is a text file beside a picture with its name, or a row of metadata.csv,
    metadata.jsonl or the folder's only .jsonl; rows may name the hint too.

    Args:
        folder: of the data.
        hints: a folder with a hint for each picture, under the same path but for the ending.

    Raises:
        ConfigError: there is no picture, a table or caption is malformed, a row names what is not
            there or lies outside of the folder, or a picture has no hint.
    """
    if not folder.is_dir():
        raise ConfigError.for_field("data", str(folder), "a folder of pictures")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and _is_shown(p))
    own_hints = _by_stem(hints) if hints is not None else {}
    if hints is not None:  # which may lie among the pictures
        paths = [path for path in paths if not path.resolve().is_relative_to(hints.resolve())]
    rows = _rows(folder)
    named = {row.path for row in rows} | {row.hint for row in rows if row.hint is not None}
    found = [*rows, *(Example(path, _beside(path)) for path in paths if path not in named)]
    if not found:
        raise ConfigError.for_field(
            "data", str(folder), f"a folder with pictures ({', '.join(ENDINGS)})"
        )
    if len(found) > _MAX_PICTURES:
        raise ConfigError.for_field("data", str(folder), f"at most {_MAX_PICTURES} pictures")
    if hints is None:
        return found
    return [
        Example(one.path, one.caption, _hint_of(one.path, folder, own_hints, hints))
        for one in found
    ]


def read_pixels(field: str, path: Path) -> tuple[Pixels, str]:
    """Return a picture's pixels [H,W,3] on white, turned upright, and the hash of its file.

    Raises:
        ConfigError: it is damaged; the message names it.
    """
    picture = read_picture(field, path)
    assert isinstance(picture, Picture)
    return flattened(picture.pixels, _WHITE), picture.sha256


def templates_of(given: Sequence[str]) -> tuple[str, ...]:
    """Return templates, with those that a word of TEMPLATES stands for in its place.

    Raises:
        ConfigError: one has a placeholder that is none.
    """
    found: list[str] = []
    for one in given:
        for template in TEMPLATES.get(one, (one,)):
            try:
                template.format(name="", caption="")
            except (KeyError, IndexError, ValueError):
                raise ConfigError.for_field(
                    "template",
                    template,
                    "text with no placeholders but {name} and {caption}, or one of "
                    + ", ".join(TEMPLATES),
                ) from None
            found.append(template)
    return tuple(found)


def check_captions(examples: Sequence[Example], templates: Sequence[str]) -> None:
    """Refuse pictures of which nothing is written, where that is needed.

    Raises:
        ConfigError: some have no caption and there is no template that does without.
    """
    if templates and not all("{caption}" in one for one in templates):
        return
    lacking = [one.path for one in examples if one.caption is None]
    if lacking:
        few = ", ".join(path.name[:60] for path in lacking[:3])
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ConfigError(
            f"data: {few}{more} of {len(examples)} pictures have no caption. Write one into a .txt "
            "file beside each, or into metadata.jsonl, or give --template 'a photo of ...'."
        )


def _is_shown(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return None
    return _text(read_file("data", text), text, _MAX_TEXT_BYTES).strip()


def _text(content: bytes, path: Path, most: int) -> str:
    if len(content) > most:
        raise ConfigError(f"data: {path} is a text of more than {most} bytes.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(
            f"data: {path} is not a text in UTF-8. Save it as one, or take it out of the folder."
        ) from None


def _rows(folder: Path) -> list[Example]:
    tables = [folder / f"metadata{ending}" for ending in _TABLES]
    present = [path for path in tables if path.is_file()] or sorted(folder.glob("*.jsonl"))
    if len(present) > 1:
        names = " and ".join(path.name for path in present[:3])
        raise ConfigError.for_field("data", names, "one table of captions")
    return [one for path in present for one in _read_table(folder, path)]


def _read_table(folder: Path, table: Path) -> Iterator[Example]:
    seen: set[Path] = set()
    root = folder.resolve()
    for number, row in _parsed(table):
        where = f"data: {table.name}, row {number}"
        name, text = _first(row, _NAME_COLUMNS), _first(row, TEXT_COLUMNS)
        if name is None:
            raise ConfigError(f"{where}: it has no {_NAME_COLUMNS[0]}.")
        if text is not None and len(text.encode("utf-8", "replace")) > _MAX_TEXT_BYTES:
            raise ConfigError(f"{where}: its text has more than {_MAX_TEXT_BYTES} bytes.")
        hint = _first(row, HINT_COLUMNS)
        path = _inside(root, folder, name, where)
        if path in seen:
            raise ConfigError(f"{where}: {name[:80]!r} is named twice.")
        seen.add(path)
        yield Example(path, text, _inside(root, folder, hint, where) if hint else None)


def _parsed(table: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = _text(read_file("data", table), table, _MAX_TABLE_BYTES)
    if table.suffix == ".csv":
        yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), 1)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ConfigError(f"data: {table.name}, row {number}: it is no JSON object.")
        yield number, row


def _first(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    found = (row.get(column) for column in columns)
    return next((one for one in found if isinstance(one, str) and one), None)


def _inside(root: Path, folder: Path, name: str, where: str) -> Path:
    """Return the path that a row names, which must be a file in the folder."""
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(root) and path.is_file()
    except (OSError, ValueError):
        is_inside = False
    if not is_inside:
        raise ConfigError(f"{where}: {name[:80]!r} is no file in {str(folder)!r}.")
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{where}: {name[:80]!r} is no picture ({', '.join(ENDINGS)}).")
    return path


def _by_stem(hints: Path) -> dict[Path, Path]:
    if not hints.is_dir():
        raise ConfigError.for_field("hints", str(hints), "a folder with a hint for each picture")
    paths = (p for p in hints.rglob("*") if p.suffix.lower() in ENDINGS and _is_shown(p))
    return {path.relative_to(hints).with_suffix(""): path for path in sorted(paths)}


def _hint_of(path: Path, folder: Path, known: Mapping[Path, Path], hints: Path) -> Path:
    found = known.get(path.relative_to(folder).with_suffix(""))
    if found is None:
        raise ConfigError(
            f"hints: {str(hints)!r} has no picture {path.relative_to(folder).with_suffix('')}.*, "
            f"the hint of {path.name!r}."
        )
    return found
