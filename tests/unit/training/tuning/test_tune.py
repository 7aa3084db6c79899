"""Trainings of every kind go on as if uninterrupted; what their command makes, and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.tiny_checkpoints import make_tiny
from support.tuning import losses, options, pictures, place

from sdengine.cli.main import main
from sdengine.errors import CheckpointError, ConfigError, OutputError
from sdengine.training.loop import Report
from sdengine.training.run_folder import RunFolder
from sdengine.training.tuning.live_engine import LiveEngine, make_class_pictures
from sdengine.training.tuning.tune import tune


def test_a_damaged_picture_of_the_class_is_refused_before_others_are_made(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "class", [(64, 64)] * 2, captions=False)
    damaged = max(folder.glob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:60])

    def engine() -> LiveEngine:
        raise AssertionError("nothing is made before what is there was looked at")

    with pytest.raises(ConfigError, match=rf"^class_folder: '{damaged.name}' "):
        make_class_pictures(engine, folder, "a circle", 5, 0)
    assert len([*folder.iterdir()]) == 2
    make_class_pictures(engine, folder, "a circle", 2, 0)  # nothing lacks


class Interrupted(Exception):
    """Stand in for a kill in the middle of a run."""


def stop_at(number: int) -> Report:
    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == number:
            raise Interrupted

    return report


# Between them they have every kind of state; LoRA is killed below.
@pytest.mark.parametrize("kind", ["embedding", "hypernetwork", "dreambooth", "controlnet"])
def test_a_training_that_goes_on_gives_the_same_file(
    kind: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    chosen = options(kind, steps=3, save_every=1, ema_decay=0.9, mirror=True)
    output, run = place(kind, tmp_path), tmp_path / f"{place(kind, tmp_path).name}.training"
    tune(kind, tiny, data, output, chosen)
    whole, curve = contents(output), losses(run)
    output.rename(tmp_path / "before")
    (run / "state-000003.pt").unlink()
    tune(kind, tiny, data, output, chosen, resume=True)
    assert losses(run) == curve and len(curve) == 3
    assert contents(output) == whole


def test_a_training_that_was_killed_goes_on_where_it_is_asked_to(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    chosen = options("lora", steps=3, save_every=1)
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    tune("lora", tiny, data, whole, chosen)
    with pytest.raises(Interrupted):
        tune("lora", tiny, data, cut, chosen, report=stop_at(2))
    assert not cut.exists()
    with pytest.raises(OutputError, match=r"holds a run.*--resume"):
        tune("lora", tiny, data, cut, chosen)
    tune("lora", tiny, data, cut, chosen, resume=True)
    runs = (tmp_path / f"{name}.safetensors.training" for name in ("whole", "cut"))
    assert [*map(losses, runs)] == [losses(tmp_path / "whole.safetensors.training")] * 2
    found, wanted = (load_file(path) for path in (cut, whole))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path.parent).as_posix(): p.read_bytes() for p in files}


def test_other_data_or_options_are_another_run(tiny: Path, data: Path, tmp_path: Path) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    output = place("lora", tmp_path)
    chosen = options("lora", save_every=1)
    with pytest.raises(Interrupted):
        tune("lora", tiny, copied, output, chosen, report=stop_at(2))
    assert RunFolder(tmp_path / "thing.safetensors.training").checkpoints().keys() == {1}
    with pytest.raises(CheckpointError, match="rank was 4, is now 8"):
        tune("lora", tiny, copied, output, options("lora", rank=8), resume=True)
    (copied / "0.txt").write_text("another caption")
    with pytest.raises(CheckpointError, match="data was"):
        tune("lora", tiny, copied, output, chosen, resume=True)


def test_class_pictures_and_sheets_are_made_by_the_engine(
    tiny: Path, data: Path, tmp_path: Path
) -> None:
    import sdengine

    chosen = options(
        "dreambooth",
        class_prompt="a circle",
        class_pictures=1,
        sample=("a square",),
        sample_every=2,
        seed=3,
    )
    tune("dreambooth", tiny, data, tmp_path / "thing", chosen)
    run = tmp_path / "thing.training"
    sheet = np.asarray(Image.open(run / "sheet-000002.png"))
    assert sheet.shape == (64, 256, 3)
    size: dict[str, Any] = {"width": 64, "height": 64}
    with sdengine.load(run / "bundle", "torch", "fp32") as engine:
        wanted = engine.generate("a circle", seed=3, **size).arrays[0]
        before = engine.generate("a square", seed=1, **size).arrays[0]
    made = np.asarray(Image.open(run / "class" / "class-00000.png"))
    assert np.abs(made.astype(int) - wanted).max() <= 1
    assert not np.array_equal(sheet[:, 64:128], before)  # two steps later


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"conv_rank": 0, "conv_alpha": 2.0}, r"conv_alpha.*--conv-rank"),
        ("lora", {"restarts": 2}, "restarts"),
        ("lora", {"sample_every": 3}, r"sample_every.*--sample"),
        ("lora", {"templates": ("{x}",)}, "template"),
        ("embedding", {"templates": ("a thing",)}, r"\{name\}"),
        ("embedding", {"templates": ("{caption}",)}, r"template.*captions that name 'thing'"),
        ("embedding", {"vectors": 76}, "vectors"),
        ("embedding", {"name": "a\nb"}, "name"),
        ("hypernetwork", {"structure": (1, 2)}, "structure"),
        ("hypernetwork", {"structure": "1,0,1"}, "structure"),
        ("hypernetwork", {"widths": (31,)}, r"widths.*\[16, 32, 48\]"),
        ("hypernetwork", {"activation": "prelu"}, "activation"),
        ("hypernetwork", {"activation": "linear", "activate_output": True}, "activate_output"),
        ("dreambooth", {"prior_weight": 2.0}, r"prior_weight.*--class-prompt"),
        ("controlnet", {"preprocessor": ""}, r"hints.*--preprocessor"),
        ("controlnet", {"hints": "x"}, r"preprocessor.*no --hints"),
        ("lora", {"resolution": 60}, r"resolution.*a multiple of 64"),
        ("lora", {"device": "cuda"}, r"device.*no GPU"),
        ("lora", {"precision": "fp16", "optimiser": "adafactor"}, "optimiser"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    kind: str, changes: dict[str, Any], said: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=said):
        tune(kind, tiny, data, place(kind, tmp_path), options(kind, **changes))
    assert not place(kind, tmp_path).exists()


@pytest.mark.parametrize("is_new", [True, False])
def test_a_damaged_picture_leaves_nothing_of_a_new_run(
    is_new: bool, tiny: Path, data: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(data, tmp_path / "data")
    (damaged / "zz.png").write_bytes(b"damaged")
    target = place("lora", tmp_path)
    run = target.with_name(f"{target.name}.training")
    if not is_new:
        run.mkdir()
    with pytest.raises(ConfigError, match=r"zz\.png"):
        tune("lora", tiny, damaged, target, options("lora", templates=("a cat",)))
    assert run.exists() is not is_new
    assert is_new or any((run / "latents").iterdir())


def test_places_and_checkpoints_are_looked_at_first(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output.*ends in \.safetensors"):
        tune("lora", tiny, data, tmp_path / "thing.ckpt", options("lora"))
    (tmp_path / "thing").mkdir()
    with pytest.raises(OutputError, match="exists"):
        tune("finetune", tiny, data, tmp_path / "thing", options("finetune"))
    with pytest.raises(ConfigError, match="kind"):
        tune("pose", tiny, data, tmp_path / "new", options("lora"))
    for family, said in (("tiny-sdxl-refiner", "refiner"), ("tiny-lcm", "distilled")):
        other = make_tiny(family, tmp_path / family)
        with pytest.raises(ConfigError, match=rf"checkpoint.*{said}"):
            tune("lora", other, data, tmp_path / "x.safetensors", options("lora"))
    with pytest.raises(ConfigError, match=r"checkpoint.*9 input channels"):
        tune("lora", "demo-inpainting", data, tmp_path / "x.safetensors", options("lora"))
    assert not list(tmp_path.glob("*.training"))


def test_the_command_trains_what_it_is_told(
    tiny: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "thing.pt"
    command = ["train", "embedding", str(tiny), "--data", str(data), "-o", str(output)]
    few = ["--steps", "1", "--resolution", "64", "--vectors", "3", "--name", "toy"]
    assert main([*command, *few, "--template", "{name}, {caption}"]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    content = torch.load(output, weights_only=True)
    assert content["name"] == "toy" and content["string_to_param"]["*"].shape == (3, 32)
    assert main([*command, *few]) == 1
    assert "exists" in capsys.readouterr().err
    assert main(["train", "lora", str(tiny), "--data", str(data), "-o", "x.pt"]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
