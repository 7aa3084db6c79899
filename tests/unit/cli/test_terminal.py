"""Sizes that commands read, their progress bars, and who imports whom."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
from rich.table import Table

import sdengine.cli
from sdengine.cli.main import SUBCOMMANDS
from sdengine.cli.terminal import (
    note,
    parse_resolutions,
    parse_size,
    print_table,
    printable,
    progress_bar,
    say,
    say_json,
    spinner,
)
from sdengine.errors import ConfigError

COMMANDS = {command.home.partition(":")[0] for command in SUBCOMMANDS}


class Terminal(io.StringIO):
    """Stands for standard error on a terminal."""

    def isatty(self) -> bool:
        return True


def test_no_command_imports_another() -> None:
    for path in Path(sdengine.cli.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = set()
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                imported = {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
            elif isinstance(node, ast.Import):
                imported = {name.name for name in node.names}
            assert not imported & COMMANDS, f"{path.name} imports {imported & COMMANDS}"


def test_sizes_are_width_and_height() -> None:
    assert parse_size("--size", " 512X768 ") == (512, 768)
    for text in ("512", "512x", "x", "512x512x3", "-8x8", "\u0661\u0662x8", "512x123456", ""):
        with pytest.raises(ConfigError, match=r"^--size: .*512x768"):
            parse_size("--size", text)


def test_resolutions_are_sides_or_pairs() -> None:
    assert parse_resolutions("512, 768x512,64") == [512, (768, 512), 64]
    for text in ("", ",", "512,", "x", "512x", "1x2x3", "-5", "1e3", "512;768", "\u0663"):
        with pytest.raises(ConfigError, match=r"^--resolutions: .*512,768"):
            parse_resolutions(text)


def test_where_there_is_no_terminal_a_line_comes_after_a_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdengine.cli.terminal.SILENCE_SECONDS", 0.02)
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())

    def wait_for(text: str) -> None:
        end = time.monotonic() + 20
        while text not in shown.getvalue():
            assert time.monotonic() < end
            time.sleep(0.01)

    with progress_bar("reading") as bar:
        wait_for("reading ...\n")  # without a word from the work
        bar("compile \x1b[31munet", 1, 7, "loss 0.5")
        wait_for("compile \\x1b[31munet 1/7 loss 0.5 ...\n")
        time.sleep(0.2)
    with spinner("starting"):
        wait_for("starting ...\n")
    assert shown.getvalue().count("\n") == 3  # each once
    with progress_bar("reading", quiet=True), spinner("starting", quiet=True):
        time.sleep(0.1)
    assert shown.getvalue().count("\n") == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ä 猫 😀 \\", "plain, ä 猫 😀 \\"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\r\t\x7f\x9b31m", "a\\nb\\r\\t\\x7f\\x9b31m"),
        ("\u202eright\u2066", "\\u202eright\\u2066"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(
    text: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printable(text) == expected
    say(text)
    note(text)
    assert capsys.readouterr() == (expected + "\n", expected + "\n")
    say_json({text: [text]})
    shown = capsys.readouterr().out
    assert shown[:-1].isprintable() and json.loads(shown) == {text: [text]}
    table = Table("[red]name", box=None)
    table.add_row(text)
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == " [red]name ".rstrip() and "".join(lines).isprintable()


def test_commands_print_by_way_of_what_escapes() -> None:
    for path in Path(sdengine.cli.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "terminal.py":
            for other in (r"(?<![\w.])print\(", r"typer\.echo", r"\bConsole\(", r"\.write\("):
                found = [line for line in text.splitlines() if re.search(other, line)]
                assert not found or path.name == "process.py", f"{path.name}: {found}"


def test_bars_show_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", quiet := io.StringIO())
    with progress_bar("reading") as bar, spinner("starting") as tell:
        bar("compile unet", 1, 7)
        tell("working")
    assert quiet.getvalue() == ""
    for remaining in (True, False):
        monkeypatch.setattr(sys, "stderr", shown := Terminal())
        monkeypatch.setenv("TERM", "xterm")
        with progress_bar("reading", remaining=remaining, stays=True) as bar:
            bar("compile unet", 1, 7, "loss 0.5000")
        assert "compile unet" in shown.getvalue() and "1/7" in shown.getvalue()
        assert "loss 0.5000" in shown.getvalue()
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    with spinner("starting") as tell:
        tell("verifying")
    assert "verifying" in shown.getvalue()
