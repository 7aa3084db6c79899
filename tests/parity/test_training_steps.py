"""Steps at full size are compared fairly: at tiny configs both sides have the same first loss."""

from __future__ import annotations

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
    steps.write_inputs(kind, model, data, 2, tmp_path / "inputs.pt")
    theirs = steps.theirs(kind, model, tmp_path / "inputs.pt")
    assert_close("training loss", "float32", *(torch.tensor(one["loss"]) for one in (ours, theirs)))
