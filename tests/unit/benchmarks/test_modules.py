"""Benchmarks' own processes run the installed package, wherever they are started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import sdengine
from sdengine.benchmarks.modules import module_command


def test_sources_in_the_current_folder_are_not_taken_for_the_installed_package(
    tmp_path: Path,
) -> None:
    (tmp_path / "sdengine").mkdir()
    (tmp_path / "sdengine" / "__init__.py").write_text("raise SystemExit(9)")
    done = subprocess.run(
        module_command("sdengine", "--version"), cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert sdengine.__version__ in done.stdout
