from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import Open, Visit, chromium
from support.tiny_bundle import make_tiny_bundle

import sdengine
from sdengine.cli.main import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from sdengine.serving.service import Service

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_SCRIPT = shutil.which("sdengine", path=str(Path(sys.executable).parent))
COMMAND = [_SCRIPT] if _SCRIPT else [sys.executable, "-m", "sdengine"]


@pytest.fixture(scope="session")
def tiny() -> Iterator[Path]:
    # Not of pytest's folders, which go with each file's tests.
    with tempfile.TemporaryDirectory(prefix="sdengine-tests-") as folder:
        yield make_tiny_bundle(Path(folder) / "tiny", max_batch=4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command in an empty folder, as a user would."""

    def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *(str(argument) for argument in arguments)]
        defaults = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
        return subprocess.run(command, **{**defaults, **options})

    return start


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the command as `run` does, but in this process: a new one takes seconds to import torch.

    For many cases of one refusal; one of each command's tests shows it in a process of its own.
    """
    monkeypatch.chdir(tmp_path)

    def start(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in arguments]
        status = main(command)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(command, status, out, err)

    return start


@pytest.fixture
def run_text(tmp_path: Path) -> Callable[..., bytes]:
    """Run a text in a shell, where `sdengine` is the command under test; return out.png."""

    def start(text: str, folder: Path = tmp_path) -> bytes:
        command = " ".join(f"'{word}'" for word in COMMAND)
        script = f'set -e\nsdengine() {{ {command} "$@"; }}\n{text}'
        done = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return (folder / "out.png").read_bytes()

    return start


@pytest.fixture(scope="module")
def demo_engine() -> Iterator[sdengine.Engine]:
    with sdengine.load("demo") as engine:
        yield engine


@pytest.fixture(scope="module")
def server(demo_engine: sdengine.Engine) -> Iterator[tuple[str, Service]]:
    """The address of a server of the demo model, and its service."""
    from support.served import serving

    with serving({"demo": demo_engine}) as found:
        yield found


@pytest.fixture(scope="module")  # while it is open no event loop can be run in this thread
def browser() -> Iterator[Browser]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Browser, server: tuple[str, Service]) -> Iterator[Open]:
    """Open the page; at the end nothing may have been wrong in the console."""
    contexts, visits = [], []

    def start(url: str = server[0], allowed: tuple[str, ...] = (), **options: Any) -> Visit:
        contexts.append(browser.new_context(**{"accept_downloads": True, **options}))
        visits.append(Visit(contexts[-1].new_page(), url, allowed))
        return visits[-1]

    yield start
    for context in contexts:
        context.close()
    assert [error for one in visits for error in one.errors] == []
