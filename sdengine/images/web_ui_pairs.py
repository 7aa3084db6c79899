"""Pairs of the web UI's text: where they begin, and what each one says.

Source: the text of the widely used web UI: a line of `key: value` pairs behind the prompts, values
with commas, colons or line ends quoted as in JSON. Sites put JSON into a value as it is, extensions
put lines behind the pairs, and some tools write a pair a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

_MAX_CHARACTERS = 1 << 16
_STEPS = re.compile(r"[0-9]{1,20}")
_KEY = re.compile(r"[ \t]{0,20}([^:,\"\n]{1,60}):[ \t]*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PLAIN = re.compile(r"[^,\n]*")
_LINE_KEY = re.compile(r"([A-Za-z][\w ()-]{0,40}):(?: |$)")
_MAX_JSON = 50  # values that are tried as JSON
_MAX_BEGINNINGS = 20
_LINE_END = re.compile(r",?[ \t]{0,20}(?:\n|$)")
_JSON = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Pairs:
    """What was found.

    Args:
        before: the lines before the pairs.
        values: by key; of several under one key the first.
        left: keys of repeated pairs and of lines behind the pairs, and lines without a key.
    """

    before: list[str]
    values: dict[str, str]
    left: list[str]


def find_pairs(text: str, known: Collection[str]) -> Pairs:
    """Separate the pairs from the prompts.

    Prompts and values may hold lines that look like pairs: those count that have most known keys,
    of several the last.

    Args:
        text: the whole text.
        known: keys that tools write; a line that begins with another begins no pairs.
    """
    lines = text.strip().replace("\r\n", "\n").split("\n")
    beginnings = [index for index, line in enumerate(lines) if _may_begin(line, known)]
    best, most = Pairs(lines, {}, []), 0
    for index in reversed(beginnings[-_MAX_BEGINNINGS:]):
        rest = "\n".join(lines[index:])
        if len(rest) > _MAX_CHARACTERS:
            break
        values, left = _read(rest, known)
        count = len(values.keys() & set(known))
        is_led = _STEPS.fullmatch(values.get("Steps", "")) is not None
        if is_led and count > most and (count > 1 or index == len(lines) - 1):
            best, most = Pairs(lines[:index], values, left), count
    return best


def _may_begin(line: str, known: Collection[str]) -> bool:
    key = _KEY.match(line)
    return key is not None and key[1] in known and "Steps:" in line


def _read(text: str, known: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Return the pairs of a text that begins with them, and what is left."""
    values: dict[str, str] = {}
    left: list[str] = []
    place, tries = 0, _MAX_JSON
    while place < len(text):
        key = _KEY.match(text, place)
        if key is None:
            end = _end(text, place)
            if words := text[place:end].strip():
                left.append(repr(words[:40]))
        else:
            value, end, tried = _value(text, key.end(), tries)
            tries -= tried
            name = key[1].strip()
            if name in values:
                left.append(name)
            values.setdefault(name, value)
        line_end = _LINE_END.match(text, end)
        place = end + 1 if line_end is None else line_end.end()
        if line_end is not None and not _goes_on(text, place, known):
            return values, left + _lines(text[place:].split("\n"))
    return values, left


def _goes_on(text: str, place: int, known: Collection[str]) -> bool:
    key = _KEY.match(text, place)
    return key is not None and key[1].strip() in known


def _value(text: str, place: int, tries: int) -> tuple[str, int, int]:
    """Return a value, where it ends, and whether it was tried as JSON."""
    quoted = _QUOTED.match(text, place)
    if quoted is not None:
        return _unquoted(quoted[0]), _end(text, quoted.end()), 0
    if tries and text[place : place + 1] in ("[", "{"):
        try:
            _, end = _JSON.raw_decode(text, place)
        except (ValueError, RecursionError):
            pass
        else:
            return text[place:end], _end(text, end), 1
    plain = _PLAIN.match(text, place)
    assert plain is not None  # it matches nothing as well
    return plain[0].strip(), plain.end(), 1


def _end(text: str, place: int) -> int:
    """Return the comma or line end behind a value that ended by itself."""
    plain = _PLAIN.match(text, place)
    assert plain is not None
    return plain.end()


def _unquoted(value: str) -> str:
    try:
        found = _JSON.decode(value)
    except ValueError:
        return value
    return found if isinstance(found, str) else value


def _lines(lines: list[str]) -> list[str]:
    """Name the lines behind the pairs by their keys; lines after one with a key belong to it."""
    named: list[str] = []
    has_key = False
    for line in filter(str.strip, lines):
        key = _LINE_KEY.match(line)
        if key is not None:
            named.append(key[1])
        elif not has_key:
            named.append(f"the line {line[:40]!r}")
        has_key = has_key or key is not None
    return named
