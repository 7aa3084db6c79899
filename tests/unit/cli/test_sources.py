"""Python started among the sources, which hide the installed package: a message says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdengine


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The package without the parts that installing adds."""
    (tmp_path / "sdengine").mkdir()
    for path in Path(sdengine.__path__[0]).iterdir():
        if not path.name.startswith(("_native", "kernels", "benchmarks")):
            (tmp_path / "sdengine" / path.name).symlink_to(path)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python there, with the installed package behind the folder, if anywhere."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["generate", "a"], "_native"), (["doctor"], "_native"), (["bench"], "benchmarks")],
)
def test_a_command_says_what_happened(sources: Path, arguments: list[str], part: str) -> None:
    done = run(sources, "-m", "sdengine", *arguments)
    if arguments != ["doctor"] and "not installed" not in done.stderr:
        assert done.stderr.startswith(f"error: sdengine.{part} is not in '{sources}/sdengine'")
        assert done.stderr.count("\n") == 1
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "`pip install -e .`" in said and "start Python in another folder" in said


def test_python_says_what_happened(sources: Path) -> None:
    done = run(sources, "-c", "import sdengine\nwith sdengine.load('demo'): pass")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("sdengine.errors.IncompleteInstallationError: sdengine._native is not")
    assert "`pip install -e .`" in last
    program = "try:\n from sdengine import _native\nexcept ImportError as error:\n print(error)"
    assert "folder of sources" in run(sources, "-c", program).stdout
