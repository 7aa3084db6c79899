"""`sdengine bench report`: one page of what `sdengine bench` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdengine.cli.terminal import say, spinner
from sdengine.errors import ConfigError


def report(
    records: Annotated[
        list[Path], typer.Argument(help="Files of records that `sdengine bench --json` wrote.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page, an HTML file.")],
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Make a page of plots and tables, in one file that needs nothing else.

    Pictures that records name are looked for beside their files. The same records make the same
    page to the byte.
    """
    with spinner("importing"):
        from sdengine.benchmarks.suite.page.gathered import Sourced
        from sdengine.benchmarks.suite.page.page import TITLE, write
        from sdengine.benchmarks.suite.suite_records import read

    _check_place(output, overwrite=overwrite)
    sources = [Sourced(record, path.parent) for path in records for record in read([path])]
    with spinner("drawing"):
        write(sources, output, TITLE if title is None else title)
    say(str(output))


def _check_place(output: Path, *, overwrite: bool) -> None:
    """Refuse a place that the page cannot take, before it is made."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError.for_field("output", str(output), "a file name that ends in .html")
    if not output.parent.is_dir():
        raise ConfigError.for_field("output", str(output), "a file in a folder that exists")
    if output.is_dir() or (not overwrite and output.exists()):
        raise ConfigError.for_field(
            "output", str(output), "a new file", "Give another name, or --overwrite"
        )
