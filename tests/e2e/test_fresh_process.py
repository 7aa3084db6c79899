"""What a fresh process imports: the run time must stay light and free of the build world."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BUILD_WORLD = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "accelerate"}
NOT_BEFORE_NEEDED = BUILD_WORLD | {"numpy", "pydantic", "openvino", "tokenizers", "PIL", "typer"}


def modules_after(program: str, *arguments: object) -> set[str]:
    program += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-I", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_lazy() -> None:
    loaded = modules_after("import sdengine")
    assert not NOT_BEFORE_NEEDED & loaded
    ours = {name for name in loaded if name.startswith("sdengine")}
    assert ours <= {"sdengine", "sdengine.version"}


def test_generating_needs_no_build_world(tiny: Path, tmp_path: Path) -> None:
    program = (
        "import sys, sdengine\n"
        "with sdengine.load(sys.argv[1]) as engine:\n"
        "    engine.generate('a circle', seed=1).save(sys.argv[2])\n"
    )
    loaded = modules_after(program, tiny, tmp_path / "out.png")
    assert (tmp_path / "out.png").exists()
    assert not BUILD_WORLD & loaded
    build_parts = ("models", "checkpoints", "export", "training", "kernels")
    assert not {f"sdengine.{part}" for part in build_parts} & loaded


def test_command_needs_no_build_world(tiny: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from sdengine.cli.main import main\n"
        "for arguments in (['generate', 'x', '--bundle', sys.argv[1], '-o', sys.argv[2]],\n"
        "                  ['samplers'], ['doctor'], ['inspect', sys.argv[1]], ['--help']):\n"
        "    main(arguments)\n"
    )
    loaded = modules_after(program, tiny, tmp_path / "out.png")
    assert (tmp_path / "out.png").exists()
    assert not BUILD_WORLD & loaded
