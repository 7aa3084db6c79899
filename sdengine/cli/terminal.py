"""Terminal: what commands share of reading sizes, progress bars and tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

# Of tables that go to a file or another program.
_WIDTH = 160


class ProgressBar(Protocol):
    """Shows what is going on and how far it is."""

    def __call__(self, what: str, done: int, total: int, figures: str = "") -> None:
        """Show `done` of `total`, with figures behind the bar."""
        ...


@contextmanager
def progress_bar(
    first: str, *, remaining: bool = False, stays: bool = False
) -> Iterator[ProgressBar | None]:
    """Show a bar on standard error when that is a terminal; give None otherwise.

    Args:
        first: what is going on before anything is reported.
        remaining: show the time that is left instead of that which has passed.
        stays: leave the bar there when it is done.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn() if remaining else TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=not stays) as progress:
        bar = progress.add_task(first, total=None, figures="")

        def show(what: str, done: int, total: int, figures: str = "") -> None:
            progress.update(bar, description=what, completed=done, total=total, figures=figures)

        yield show


@contextmanager
def spinner(first: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on, and for how long, on standard error when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(first, total=None)

        def show(what: str) -> None:
            progress.reset(task, description=what)

        yield show


def print_table(table: RenderableType) -> None:
    """Print a table as wide as the terminal, or in a fixed width where there is none."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH, markup=False).print(table)


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Read "512x768" as width and height.

    Raises:
        ConfigError: it is something else.
    """
    sides = _sides(text)
    if len(sides) != 2:
        raise ConfigError.for_field(option, text, "width and height, such as 512x768")
    return sides[0], sides[1]


def parse_resolutions(text: str) -> list[int | tuple[int, int]]:
    """Read "512,768" or "512x768,640" as sides and pairs of width and height.

    Raises:
        ConfigError: a part is neither.
    """
    sizes: list[int | tuple[int, int]] = []
    for part in text.split(","):
        sides = _sides(part)
        if not 1 <= len(sides) <= 2:
            raise ConfigError.for_field(
                "--resolutions", text, "pixels separated by commas, such as 512,768 or 512x768"
            )
        sizes.append(sides[0] if len(sides) == 1 else (sides[0], sides[1]))
    return sizes


def _sides(text: str) -> list[int]:
    """Return the numbers between each "x"; none where one is no number of pixels."""
    sides = text.strip().lower().split("x")
    if not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        return []
    return [int(side) for side in sides]
