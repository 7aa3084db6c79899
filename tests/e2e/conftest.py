from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_bundle import make_tiny_bundle

from sdengine.cli.main import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]

_SCRIPT = shutil.which("sdengine", path=str(Path(sys.executable).parent))
COMMAND = [_SCRIPT] if _SCRIPT else [sys.executable, "-m", "sdengine"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", max_batch=4)


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
