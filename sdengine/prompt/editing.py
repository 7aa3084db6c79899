"""Prompt editing: `[from:to:when]` and `[a|b|c]`, which change with the steps, and AND.

Source: the prompt editing, alternating words and composable diffusion that the Stable Diffusion
web UI documents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise

from sdengine.errors import ConfigError
from sdengine.prompt.emphasis import MAX_WEIGHT

MAX_SWITCHES = 500
MAX_PARTS = 16

_MARK = re.compile(r"\\.|[\[\]():|]", re.DOTALL)
_AND = re.compile(r"\bAND\b")
# Written so that no text is scanned twice: an optional fraction begins with its dot.
_DECIMAL = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_PART_WEIGHT = re.compile(rf"\s*({_DECIMAL})\s*")
_WHEN = re.compile(rf"\s*({_DECIMAL}(?:[eE][+-]?[0-9]+)?)\s*")
_MAX_WHEN_LENGTH = 64


@dataclass(frozen=True)
class Part:
    """One of the texts that AND joins, and its weight in the guidance."""

    text: str
    weight: float


def split_parts(text: str, name: str = "prompt") -> list[Part]:
    """Split a prompt at the word AND, which brackets do not protect.

    A number after a part's last colon is its weight, 1 otherwise: `a AND b:1.2`. A prompt without
    AND is one part of weight 1 whatever it ends in.

    Args:
        text: the whole prompt.
        name: what messages call it.

    Raises:
        ConfigError: more than 16 parts, or a weight outside of -100 to 100.
    """
    texts = _AND.split(text)
    if len(texts) == 1:
        return [Part(text, 1.0)]
    if len(texts) > MAX_PARTS:
        raise ConfigError(
            f"{name}: {len(texts)} parts joined by AND; at most {MAX_PARTS} are accepted."
        )
    parts = [_part(one) for one in texts]
    for part in parts:
        if abs(part.weight) > MAX_WEIGHT:
            accepted = f"{-MAX_WEIGHT:g} to {MAX_WEIGHT:g}"
            raise ConfigError.for_field(f"{name}, weight of a part", part.weight, accepted)
    return parts


def _part(text: str) -> Part:
    before, colon, number = text.rpartition(":")
    match = _PART_WEIGHT.fullmatch(number) if colon else None
    return Part(before.strip(), float(match[1])) if match else Part(text.strip(), 1.0)


@dataclass(frozen=True)
class _Switch:
    """Square brackets that stand for one of several stretches of their content.

    `after` is the number of steps for which an edit keeps its first option; None alternates.
    """

    start: int
    end: int
    options: tuple[tuple[int, int], ...]
    after: int | None

    def option(self, step: int) -> int:
        if self.after is None:
            return step % len(self.options)
        return int(step >= self.after)


class EditedText:
    """A text whose edits and alternations give another text at each step.

    `[from:to:when]`, `[to:when]` and `[from::when]` change after `when`: a share of the steps where
    it has a dot or lies between 0 and 1, else a number of steps; both are rounded down. `[a|b|c]`
    takes the next one each step, an empty one too. They may hold each other. Square brackets that
    are neither, or that hold a bracket without its partner, are left to `parse_emphasis`.

    Args:
        text: one part of a prompt.
        steps: of the request, at least 1.
        name: what messages call the text.

    Raises:
        ConfigError: more than 500 edits and alternations.
    """

    def __init__(self, text: str, steps: int, name: str = "prompt") -> None:
        self._text = text
        self._switches = sorted(_switches(text, steps), key=lambda switch: switch.start)
        if len(self._switches) > MAX_SWITCHES:
            raise ConfigError(
                f"{name}: {len(self._switches)} edits and alternations; at most {MAX_SWITCHES} "
                "are accepted."
            )
        self._rendered: dict[tuple[int, ...], str] = {}

    @property
    def is_constant(self) -> bool:
        """Whether the text is the same at every step for want of edits and alternations."""
        return not self._switches

    def at(self, step: int) -> str:
        """Return the text of a step, 0 being the first."""
        chosen = tuple(switch.option(step) for switch in self._switches)
        if chosen not in self._rendered:
            self._rendered[chosen] = self._render(chosen)
        return self._rendered[chosen]

    def _render(self, chosen: tuple[int, ...]) -> str:
        kept: list[str] = []
        position = 0
        jumps: list[tuple[int, int]] = []  # where a chosen option ends, and its switch

        def copy_to(limit: int) -> None:
            nonlocal position
            while jumps and jumps[-1][0] <= limit:
                end, after = jumps.pop()
                kept.append(self._text[position:end])
                position = after
            kept.append(self._text[position:limit])
            position = max(position, limit)

        for switch, option in zip(self._switches, chosen, strict=True):
            copy_to(switch.start)
            if switch.start < position:
                continue  # inside an option that was not chosen
            position, end = switch.options[option]
            jumps.append((end, switch.end))
        copy_to(len(self._text))
        return "".join(kept)


@dataclass
class _Frame:
    """An opened bracket: where it is, and the separators found directly inside it.

    `is_balanced` turns false when a bracket without its partner is found anywhere inside.
    """

    is_square: bool
    start: int
    is_balanced: bool = True
    colons: list[int] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)


def _switches(text: str, steps: int) -> list[_Switch]:
    switches = []
    frames = [_Frame(False, -1)]  # the first one is the text itself and never closes
    num_open = {True: 0, False: 0}

    def close() -> _Frame:
        frame = frames.pop()
        num_open[frame.is_square] -= 1
        frames[-1].is_balanced &= frame.is_balanced
        return frame

    for mark in _MARK.finditer(text):
        symbol, position = mark[0], mark.start()
        if symbol in "[(":
            frames.append(_Frame(symbol == "[", position))
            num_open[symbol == "["] += 1
        elif symbol in "])":
            is_square = symbol == "]"
            if not num_open[is_square]:
                frames[-1].is_balanced = False
                continue
            while frames[-1].is_square != is_square:
                frames[-1].is_balanced = False
                close()
            frame = close()
            if frame.is_square and frame.is_balanced:
                switches += _switch(text, frame, position, steps)
        elif symbol == ":":
            frames[-1].colons.append(position)
        elif symbol == "|":
            frames[-1].bars.append(position)
    return switches


def _switch(text: str, frame: _Frame, end: int, steps: int) -> list[_Switch]:
    """Return what square brackets switch between, if they do."""
    first = frame.start + 1
    if frame.bars:
        borders = [frame.start, *frame.bars, end]
        options = tuple((a + 1, b) for a, b in pairwise(borders))
        return [_Switch(frame.start, end + 1, options, None)]
    if len(frame.colons) not in (1, 2) or end - frame.colons[-1] > _MAX_WHEN_LENGTH:
        return []
    when = _WHEN.fullmatch(text, frame.colons[-1] + 1, end)
    if when is None:
        return []
    if len(frame.colons) == 1:
        options = ((first, first), (first, frame.colons[0]))
    else:
        options = ((first, frame.colons[0]), (frame.colons[0] + 1, frame.colons[1]))
    return [_Switch(frame.start, end + 1, options, _steps_before(when[1], steps))]


def _steps_before(when: str, steps: int) -> int:
    value = float(when)
    if "." in when or 0 < value < 1:
        value *= steps
    return int(max(0.0, min(float(steps), value)))
