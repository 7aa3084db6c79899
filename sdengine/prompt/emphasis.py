"""Emphasis in a prompt: `(more)`, `[less]`, `(as much:1.3)`, escapes, and BREAK between sections.

Source: the attention syntax that the Stable Diffusion web UI documents. Round and square brackets
nest independently of each other, and one that is never closed reaches to the end of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from sdengine.errors import ConfigError

MAX_WEIGHT = 100.0
ROUND_FACTOR = 1.1
SQUARE_FACTOR = 1 / 1.1

_MARK = re.compile(
    r"\\(?P<escaped>[\\()\[\]])"
    r"|(?P<stated>:\s*(?P<weight>[+-]?[.0-9]+)\s*\))"
    r"|(?P<section>\bBREAK\b)"
    r"|[\\()\[\]]"
)


@dataclass(frozen=True)
class Run:
    """A stretch of text under one weight; it is tokenized by itself."""

    text: str
    weight: float


@dataclass(frozen=True)
class _Piece:
    """Text between two marks, and the innermost bracket of each kind around it."""

    text: str
    round: int
    square: int


class _Brackets:
    """All brackets of one kind: each knows the one around it; number 0 stands for none."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._parents = [0]
        self._factors = [1.0]
        self._open = [0]

    @property
    def innermost(self) -> int:
        return self._open[-1]

    def push(self) -> None:
        self._parents.append(self.innermost)
        self._open.append(len(self._factors))
        self._factors.append(self._factor)

    def pop(self, factor: float | None = None) -> bool:
        """Close the innermost bracket, with a factor of its own if one is given."""
        if self.innermost == 0:
            return False
        bracket = self._open.pop()
        if factor is not None:
            self._factors[bracket] = factor
        return True

    def weights(self) -> list[float]:
        """Return by number what a bracket and all around it multiply to."""
        weights: list[float] = []
        for parent, factor in zip(self._parents, self._factors, strict=True):
            weights.append(factor * weights[parent] if weights else factor)
        return weights


def parse_emphasis(text: str, field: str = "prompt") -> list[list[Run]]:
    r"""Split a prompt into sections of weighted runs, in time linear in its length.

    A bracket without its partner, a weight that is no number (`(a:1.2.3)`, `(a:nan)`) and a colon
    that no weight follows are text. A backslash before `\ ( ) [ ]` makes that character text; any
    other backslash vanishes. BREAK counts as a whole word only, inside brackets too.

    Args:
        text: the prompt, with edits already resolved.
        field: what messages call it.

    Returns:
        One list of runs for each section between BREAKs, at least one; no run is empty.

    Raises:
        ConfigError: a weight lies outside of -100 to 100.
    """
    sections = _weighted(text)
    for run in (run for section in sections for run in section):
        if not abs(run.weight) <= MAX_WEIGHT:  # refuses nan too, which infinity times 0 gives
            raise ConfigError(
                f"{field}: the weight of {_shown(run.text)} is {run.weight:g}; expected "
                f"{-MAX_WEIGHT:g} to {MAX_WEIGHT:g}. Nested brackets multiply; write \\( or \\[ "
                "for brackets that are text."
            )
    return sections


def parse_unweighted(text: str) -> list[list[Run]]:
    """Split a prompt as `parse_emphasis` does, but give every run the weight 1."""
    return [[Run(run.text, 1.0) for run in section] for section in _weighted(text)]


def _weighted(text: str) -> list[list[Run]]:
    round_brackets, square_brackets = _Brackets(ROUND_FACTOR), _Brackets(SQUARE_FACTOR)
    sections = _pieces(text, round_brackets, square_brackets)
    by_round, by_square = round_brackets.weights(), square_brackets.weights()
    return [
        _runs([(piece.text, by_round[piece.round] * by_square[piece.square]) for piece in section])
        for section in sections
    ]


def _pieces(text: str, round_brackets: _Brackets, square_brackets: _Brackets) -> list[list[_Piece]]:
    sections: list[list[_Piece]] = [[]]

    def add(piece: str) -> None:
        if piece:
            sections[-1].append(_Piece(piece, round_brackets.innermost, square_brackets.innermost))

    end = 0
    for mark in _MARK.finditer(text):
        add(text[end : mark.start()])
        end = mark.end()
        symbol = mark[0]
        if mark["escaped"]:
            add(mark["escaped"])
        elif mark["section"]:
            sections.append([])
        elif mark["stated"]:
            weight = _number(mark["weight"])
            if weight is None:
                add(symbol[:-1])
                symbol = ")"
            if not round_brackets.pop(weight):
                add(symbol)
        elif symbol == "(":
            round_brackets.push()
        elif symbol == "[":
            square_brackets.push()
        elif (symbol == ")" and not round_brackets.pop()) or (
            symbol == "]" and not square_brackets.pop()
        ):
            add(symbol)
    add(text[end:])
    return sections


def _runs(pieces: list[tuple[str, float]]) -> list[Run]:
    """Join neighbours of equal weight: an escaped bracket belongs to the text around it."""
    return [
        Run("".join(text for text, _ in group), weight)
        for weight, group in groupby(pieces, key=lambda piece: piece[1])
    ]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
