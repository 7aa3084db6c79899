"""Sizes that commands read, their progress bars, and who imports whom."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

import sdengine.cli
from sdengine.cli.main import SUBCOMMANDS
from sdengine.cli.terminal import parse_resolutions, parse_size, progress_bar, spinner
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


def test_bars_show_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", quiet := io.StringIO())
    with progress_bar("reading") as bar, spinner("starting") as tell:
        assert bar is None
        tell("working")
    assert quiet.getvalue() == ""
    for remaining in (True, False):
        monkeypatch.setattr(sys, "stderr", shown := Terminal())
        monkeypatch.setenv("TERM", "xterm")
        with progress_bar("reading", remaining=remaining, stays=True) as bar:
            assert bar is not None
            bar("compile unet", 1, 7, "loss 0.5000")
        assert "compile unet" in shown.getvalue() and "1/7" in shown.getvalue()
        assert "loss 0.5000" in shown.getvalue()
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    with spinner("starting") as tell:
        tell("verifying")
    assert "verifying" in shown.getvalue()
