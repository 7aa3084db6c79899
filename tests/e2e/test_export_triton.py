"""`sdengine export-triton` as a user runs it, and its model in a process such as the server's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import triton_server
from support.commands import errors

import sdengine

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# What an instance's process does: no package is imported but those that `model.py` asks for.
_INSTANCE = """
import sys
from pathlib import Path
import numpy as np
from support.triton_server import Server

with Server(Path(sys.argv[1])) as server:
    first, second = server.infer_all([
        {"PROMPT": [["a red circle on white"]], "SEED": [[7]], "STEPS": [[2]]},
        {"PROMPT": [["a blue ring on white"]], "SEED": [[8]], "STEPS": [[2]]},
    ])
    np.savez(sys.argv[2], first=first["IMAGES"], second=second["IMAGES"])
assert "torch" not in sys.modules
"""


def test_a_model_is_served_where_its_folder_was_moved(run: Run, tmp_path: Path) -> None:
    done = run("export-triton", "demo", "-o", "models", "--name", "sd", "--max-batch", 4)
    assert (done.returncode, errors(done)) == (0, [])
    assert done.stdout == "models/sd: for tritonserver --model-repository=models\n"
    moved = shutil.move(tmp_path / "models" / "sd", tmp_path / "elsewhere")
    model = Path(moved).rename(tmp_path / "sd")
    tests = Path(triton_server.__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(tests), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", _INSTANCE, str(model), str(tmp_path / "images.npz")]
    subprocess.run(
        command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=120
    )
    with np.load(tmp_path / "images.npz") as images, sdengine.load("demo") as engine:
        for name, prompt, seed in (
            ("first", "a red circle on white", 7),
            ("second", "a blue ring on white", 8),
        ):
            alone = engine.generate(prompt, seed=seed, steps=2).arrays[0]
            np.testing.assert_array_equal(images[name], alone[None])


def test_options_are_written(run: Run, tmp_path: Path) -> None:
    options = ("--instances", 2, "--threads", 3, "--precision", "int8", "--tensors", "small")
    done = run("export-triton", "demo", "-o", "m", "--pixels", "fp16", *options, "--json")
    assert (done.returncode, errors(done)) == (0, [])
    told = json.loads(done.stdout)
    assert told == {"path": "m/stable_diffusion", "name": "stable_diffusion", "max_batch_size": 0}
    text = (tmp_path / told["path"] / "config.pbtxt").read_text()
    config = triton_server.read_config(text)
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    assert config["output"][0] == {
        "name": "generated_image",
        "data_type": "TYPE_FP16",
        "dims": [-1, -1, -1, 3],
    }
    parameters = {name: one["string_value"] for name, one in config["parameters"].items()}
    assert (parameters["threads"], parameters["precision"]) == ("3", "int8")


def test_batches_beyond_the_bundles_own_are_told(call: Run) -> None:
    done = call("export-triton", "demo", "-o", "m", "--max-batch", 8)
    assert done.returncode == 0
    assert done.stderr == (
        "note: the bundle makes 4 pictures at once; of a batch of 8 they are made in turn.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("demo", "-o", "m", "--name", "a/b"), 2, "name: 'a/b' is not accepted"),
        (("demo", "-o", "m", "--max-batch", "300"), 2, "max_batch: 300"),
        (("demo", "-o", "m", "--tensors", "both"), 2, "tensors: 'both'"),
        (("demo", "-o", "m", "--backend", "triton"), 1, "backend triton cannot run this bundle"),
        (("none", "-o", "m"), 2, "bundle 'none' does not exist"),
        (("demo", "-o", "a/b"), 1, "folder 'a' does not exist"),
        (("demo",), 2, "Missing option"),
    ],
)
def test_what_is_refused_leaves_nothing(
    call: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    done = call("export-triton", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert told in done.stderr
    assert os.listdir(tmp_path) == []


def test_only_force_replaces(call: Run, tmp_path: Path) -> None:
    assert call("export-triton", "demo", "-o", "m").returncode == 0
    again = call("export-triton", "demo", "-o", "m", "--pixels", "fp32")
    assert again.returncode == 1 and "use --force" in again.stderr
    assert call("export-triton", "demo", "-o", "m", "--pixels", "fp32", "--force").returncode == 0
    assert "TYPE_FP32" in (tmp_path / "m/stable_diffusion/config.pbtxt").read_text()
