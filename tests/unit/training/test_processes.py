"""Several processes: the mean of their gradients is that of all their batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close

PROGRAM = """
from pathlib import Path
import torch
from sdengine.training.loop import train
from sdengine.training.processes import run_processes
from sdengine.training.schedule import Schedule

class Task:
    def __init__(self):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(4, 2)

    def loss(self, draw, progress):
        x = torch.randn(8, 4, generator=draw.torch)
        return (self.model(x) - x[:, :2]).square().mean(), {}

    def sheet(self, model):
        return None

def run(folder, accumulation):
    schedule = Schedule(steps=6, learning_rate=0.05, warmup=2, accumulation=accumulation)
    train(Task(), Path(folder), schedule)

def job():
    run("two", 1)

if __name__ == "__main__":
    run_processes(2, Path("two"), job)
    run("one", 2)
"""


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_that_sees_both_batches(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, check=True)
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("one", "two")]
    one, two = (np.array([json.loads(line)["loss"] for line in log]) for log in logs)
    assert len(one) == 6
    assert_close("accumulated training", "float32", two, one)
