"""Steps at full size are compared fairly: at tiny configs both sides have the same first loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_checkpoints import make_tiny
from support.tuning import pictures
from tolerances import assert_close

from sdengine.benchmarks import training_steps as steps

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("peft", reason="peft is not installed")


@pytest.mark.parametrize("kind", ["embedding", "lora", "controlnet", "finetune"])
def test_both_sides_of_a_step_have_the_same_loss(kind: str, tmp_path: Path) -> None:
    model = make_tiny("tiny", tmp_path / "model")
    data = pictures(tmp_path / "data", [(64, 64)])
    ending = "" if kind in ("controlnet", "finetune") else ".safetensors"
    ours = steps.ours(kind, model, data, tmp_path / f"out{ending}", 2)
    steps.write_inputs(kind, model, data, tmp_path / "inputs.pt")
    theirs = steps.check(kind, model, tmp_path / "inputs.pt")
    assert_close("training loss", "float32", *(torch.tensor(one["loss"]) for one in (ours, theirs)))


# Takes what scripts are given, and steps of an optimiser that do not end by themselves.
_SCRIPT = """
import json, sys, time
import torch

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
weight = torch.nn.Parameter(torch.ones(3))
optimiser = torch.optim.AdamW([weight], lr=float(given["--learning_rate"]))
print("a progress bar")
ends = iter([7.0, 8.5, 9.0])
time.process_time = lambda: next(ends)
while True:
    with open("steps.jsonl", "a") as file:
        file.write(json.dumps(given) + chr(10))
    weight.sum().backward()
    optimiser.step()
"""


@pytest.mark.parametrize("kind", steps.SCRIPTS)
def test_a_script_is_ended_behind_its_steps(kind: str, tmp_path: Path) -> None:
    model = make_tiny("tiny", tmp_path / "model")
    data = pictures(tmp_path / "data", [(64, 64)])
    script = tmp_path / "examples" / steps.SCRIPTS[kind][0]
    script.parent.mkdir(parents=True)
    script.write_text(_SCRIPT)
    words = ["script", kind, model, data, tmp_path / "out", 3, tmp_path / "examples"]
    command = [sys.executable, "-m", "sdengine.benchmarks.training_steps", *map(str, words)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found == {"script": steps.SCRIPTS[kind][0], "step_seconds": 0.5}
    given = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert len(given) == 3 and given[0]["--resolution"] == "64"
    name = "--instance_data_dir" if kind == "dreambooth" else "--train_data_dir"
    listed = {file.name for file in Path(given[0][name]).iterdir()}
    alone = kind in ("embedding", "dreambooth")  # every file is a picture to those
    assert listed == {"picture.png"} | (set() if alone else {"edges.png", "metadata.jsonl"})
