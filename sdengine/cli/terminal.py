"""Terminal: what commands share of output, progress bars, tables and reading sizes."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

# Of tables that go to a file or another program.
_WIDTH = 160

# After so long a command says in a log what it is doing, and then less and less often. A terminal
# has a bar from the beginning.
SILENCE_SECONDS = 2.0
_MOST_SILENCE_SECONDS = 60.0


def printable(text: str) -> str:
    """Return text with everything escaped that is no character to see.

    Names in checkpoints, bundles and metadata are anybody's: in them, codes could move a
    terminal's cursor, change its title or colours, or turn the direction of what is read.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def say(text: str, *, at_once: bool = False) -> None:
    """Print a line of the command's result on standard output.

    Args:
        text: of the line.
        at_once: whoever reads shall not wait for the command's end.
    """
    print(printable(text), flush=at_once)


def say_json(content: object) -> None:
    """Print a JSON object on standard output."""
    print(json.dumps(content).replace("\x7f", "\\u007f"))


def note(text: str) -> None:
    """Print a line about the work, a warning or an error on standard error."""
    print(printable(text), file=sys.stderr)


class ProgressBar(Protocol):
    """Shows what is going on and how far it is."""

    def __call__(self, what: str, done: int, total: int, figures: str = "") -> None:
        """Show `done` of `total`, with figures behind the bar."""
        ...


@contextmanager
def progress_bar(
    first: str, *, remaining: bool = False, stays: bool = False, quiet: bool = False
) -> Iterator[ProgressBar]:
    """Show a bar on standard error where that is a terminal; else a line now and then.

    Args:
        first: what is going on before anything is reported.
        remaining: show the time that is left instead of that which has passed.
        stays: leave the bar there when it is done.
        quiet: no lines where there is no terminal.
    """
    if not sys.stderr.isatty():
        with _lines(first, quiet) as report:
            yield report
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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn() if remaining else TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=not stays) as progress:
        bar = progress.add_task(printable(first), total=None, figures="")

        def show(what: str, done: int, total: int, figures: str = "") -> None:
            what, figures = printable(what), printable(figures)
            progress.update(bar, description=what, completed=done, total=total, figures=figures)

        yield show


@contextmanager
def spinner(first: str, *, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show what is going on, and for how long, as `progress_bar` does without a count."""
    if not sys.stderr.isatty():
        with _lines(first, quiet) as report:
            yield lambda what: report(what, 0, 0)
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(first), total=None)

        def show(what: str) -> None:
            progress.reset(task, description=printable(what))

        yield show


@contextmanager
def _lines(first: str, quiet: bool) -> Iterator[ProgressBar]:
    """Say what is going on whenever that has changed after a while of silence."""
    latest = first
    is_over = threading.Event()

    def show(what: str, done: int, total: int, figures: str = "") -> None:
        nonlocal latest
        latest = " ".join(filter(None, (what, f"{done}/{total}" if total else "", figures)))

    def watch() -> None:
        said, silence = "", SILENCE_SECONDS
        while not is_over.wait(silence):
            if latest != said:
                said = latest
                note(f"{said} ...")
                silence = min(2 * silence, _MOST_SILENCE_SECONDS)

    if quiet:
        yield show
        return
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield show
    finally:
        is_over.set()
        watcher.join()


def print_table(table: RenderableType) -> None:
    """Print a table as wide as the terminal, or in a fixed width where there is none."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, markup=False, highlight=False)
    console.print(
        Segments(
            part if part.text == "\n" else Segment(printable(part.text), part.style, part.control)
            for part in console.render(table)
        )
    )


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
