"""Inputs of tasks: what every side is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdengine.benchmarks.suite.setting import TASKS, Setting
from sdengine.benchmarks.suite.task_inputs import build_flags, given_fields, mask, picture
from sdengine.models.controlnet import ControlNetModel


def test_every_task_is_a_valid_request() -> None:
    for task in TASKS:
        setting = Setting(arch="tiny", task=task, resolution=64)
        request = setting.request(2, **given_fields(setting))
        assert request.steps == 2
        assert (request.image is not None) == (task in ("image", "inpaint"))
        assert (request.mask is not None) == (task == "inpaint")
        assert len(request.controls) == (task == "control")


def test_pictures_have_colours_and_masks_a_middle() -> None:
    assert picture(64).shape == (64, 64, 3) and picture(64).std() > 30
    assert mask(64)[32, 32] == 255 and mask(64)[0].max() == 0
    assert np.isclose((mask(64) > 0).mean(), 0.25)


def test_a_controlnet_is_written_once_and_built_in(tmp_path: Path) -> None:
    import json

    from sdengine.models.controlnet import ControlNetConfig

    assert build_flags(Setting(arch="tiny", resolution=64), tmp_path) == ()
    setting = Setting(arch="tiny", task="control", resolution=64)
    flags = build_flags(setting, tmp_path)
    folder = tmp_path / "tiny-controlnet"
    assert flags == ("--control", f"canny={folder}")
    written = folder / "diffusion_pytorch_model.safetensors"
    before = written.stat().st_mtime_ns
    assert build_flags(setting, tmp_path) == flags
    assert written.stat().st_mtime_ns == before
    config = json.loads((folder / "config.json").read_text())
    assert ControlNetModel(ControlNetConfig.from_dict(config)) is not None
