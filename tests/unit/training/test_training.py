"""The training loop and the tasks: resuming, refusing, and losses that fall."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from tolerances import assert_close
from torch import Tensor, nn

from sdengine.checkpoints import demo_tokenizer_dir
from sdengine.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    TrainingError,
)
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.latents import encode_scenes
from sdengine.training.loop import Draw, Report, load_average, train
from sdengine.training.run_folder import RunFolder
from sdengine.training.scenes import Image
from sdengine.training.schedule import Schedule
from sdengine.training.text import EOS, VOCAB_SIZE, CaptionEncoder, TextTask
from sdengine.training.unet import DEMO_UNET, UNetTask
from sdengine.training.vae import DEMO_VAE, VAETask, kl_divergence, new_demo_vae


class LineTask:
    """Fit a line: a task small enough to train in a test."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Linear(2, 1)

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(16, 2, generator=draw.torch)
        return ((self.model(x) - x.sum(dim=1, keepdim=True)) ** 2).mean(), {"progress": progress}

    def sheet(self, model: nn.Module) -> Image:
        return np.zeros((8, 8, 3), np.uint8)


SCHEDULE = Schedule(steps=200, learning_rate=0.05, warmup=5, ema_decay=0.9)


class Interrupted(Exception):
    """Stand in for a kill in the middle of a run."""


def stop_at(number: int) -> Report:
    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == number:
            raise Interrupted

    return report


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_loss_falls_and_everything_is_written(tmp_path: Path) -> None:
    model = train(LineTask(), tmp_path, SCHEDULE, save_every=50, sheet_every=100)
    assert isinstance(model, nn.Linear) and not model.training
    torch.testing.assert_close(model.weight, torch.ones(1, 2), atol=0.02, rtol=0)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert len(losses) == 200
    assert np.mean(losses[100:]) < np.mean(losses[:100])
    assert {p.name for p in tmp_path.iterdir()} == {
        "log.jsonl",
        "loss.png",
        "sheet-000100.png",
        "sheet-000200.png",
        "state-000150.pt",
        "state-000200.pt",
    }
    with PILImage.open(tmp_path / "loss.png") as plot:
        assert plot.size == (960, 480)
        assert len(np.unique(np.asarray(plot.convert("L")))) > 10


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation": 3, "optimiser": "sgd"}, {"scale_loss": True, "decay": "linear"}],
    ids=["plain", "accumulated", "scaled"],
)
def test_a_run_that_goes_on_equals_an_uninterrupted_one(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    schedule = replace(SCHEDULE, steps=60, learning_rate=0.02, **changes)
    whole = train(LineTask(), tmp_path / "whole", schedule)
    for number in (47, 59):
        with pytest.raises(Interrupted):
            train(LineTask(), tmp_path / "cut", schedule, save_every=20, report=stop_at(number))
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"step": 60, "los')  # killed within a line
    resumed = train(LineTask(), tmp_path / "cut", schedule, save_every=20)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dropout_is_the_same_after_a_resumption(tmp_path: Path) -> None:
    class Dropping(LineTask):
        def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
            loss, figures = super().loss(draw, progress)
            return loss * nn.functional.dropout(torch.ones(4), 0.5).mean(), figures

    schedule = replace(SCHEDULE, steps=12)
    whole = train(Dropping(), tmp_path / "whole", schedule)
    with pytest.raises(Interrupted):
        train(Dropping(), tmp_path / "cut", schedule, save_every=5, report=stop_at(8))
    resumed = train(Dropping(), tmp_path / "cut", schedule, save_every=5)
    assert torch.equal(next(whole.parameters()), next(resumed.parameters()))
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    class Joined(LineTask):
        def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
            parts = [Draw.at(0, draw.number * 4 + i) for i in range(4)]
            x = torch.cat([torch.randn(16, 2, generator=part.torch) for part in parts])
            return ((self.model(x) - x.sum(dim=1, keepdim=True)) ** 2).mean(), {}

    schedule = replace(SCHEDULE, steps=8)
    joined = train(Joined(), tmp_path / "joined", schedule)
    added = train(LineTask(), tmp_path / "added", replace(schedule, accumulation=4))
    for a, b in zip(joined.parameters(), added.parameters(), strict=True):
        assert_close("accumulated training", "float32", a.detach(), b.detach())


def test_a_signal_ends_the_step_and_saves_it(tmp_path: Path) -> None:
    def end(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 13:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(LineTask(), tmp_path, replace(SCHEDULE, steps=20), report=end)
    assert [*RunFolder(tmp_path).checkpoints()] == [13]
    resumed = train(LineTask(), tmp_path, replace(SCHEDULE, steps=20))
    whole = train(LineTask(), tmp_path / "whole", replace(SCHEDULE, steps=20))
    assert torch.equal(next(resumed.parameters()), next(whole.parameters()))


class FailingTask(LineTask):
    """Lose the loss, or its gradient, at some steps."""

    def __init__(self, bad: Container[int], *, gradient: bool = False) -> None:
        super().__init__()
        self.bad, self.gradient = bad, gradient

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        loss, _ = super().loss(draw, progress)
        if draw.number in self.bad:
            # The root of 0 is 0, and its slope infinite.
            loss = loss + (loss * 0).sqrt() if self.gradient else loss * torch.nan
        return loss, {}


@pytest.mark.parametrize("gradient", [False, True])
def test_a_loss_that_is_lost_changes_nothing_and_is_reported(
    tmp_path: Path, gradient: bool
) -> None:
    task = FailingTask({4, 5}, gradient=gradient)
    weights = []

    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        weights.append(next(task.model.parameters()).detach().clone())

    train(task, tmp_path, replace(SCHEDULE, steps=8), report=report)
    skipped = [line.get("skipped", 0) for line in log_of(tmp_path)]
    assert skipped == [0, 0, 0, 0, 1, 2, 0, 0]
    assert torch.equal(weights[3], weights[5]) and not torch.equal(weights[5], weights[6])


def test_a_training_that_is_lost_ends_with_its_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"10 steps in a row.*state-000030\.pt.*Lower"):
        train(FailingTask(range(23, 99)), tmp_path, SCHEDULE, save_every=10)
    state = RunFolder(tmp_path).read()
    assert state is not None and state["step"] == 30  # at which all is as at step 23
    assert torch.isfinite(state["model"]["weight"]).all()


def test_other_settings_or_models_are_refused(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, replace(SCHEDULE, steps=3), identity={"data": "a"})
    with pytest.raises(CheckpointError, match=r"data was a, is now None; steps was 3, is now 200"):
        train(LineTask(), tmp_path, SCHEDULE)
    with pytest.raises(CheckpointError, match="another model"):
        load_average(tmp_path, nn.Linear(3, 1))
    with pytest.raises(CheckpointError, match="train it first"):
        load_average(tmp_path / "absent", nn.Linear(2, 1))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state-000007.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a readable training checkpoint"):
        train(LineTask(), tmp_path, SCHEDULE)


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"learning_rate": float("nan")},
        {"ema_decay": 1.0},
        {"optimiser": "lion"},
        {"decay": "step"},
        {"restarts": 2},
        {"accumulation": 0},
        {"max_grad_norm": float("inf")},
    ],
)
def test_bad_schedules_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        replace(SCHEDULE, **values)  # type: ignore[arg-type]


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [SCHEDULE.rate(step) for step in range(SCHEDULE.steps)]
    assert rates[0] < rates[3] < max(rates)
    assert rates[-1] < 0.03 * SCHEDULE.learning_rate


def test_learning_rates_fall_as_they_are_asked_to() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=0, final_fraction=0)
    assert replace(schedule, decay="constant").rate(99) == 1
    assert replace(schedule, decay="linear").rate(25) == 0.75
    twice = replace(schedule, decay="cosine_with_restarts", restarts=2)
    assert [round(twice.rate(step), 3) for step in (0, 25, 49, 50, 75)] == [1, 0.5, 0.001, 1, 0.5]


def test_an_optimiser_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(BackendUnavailableError, match="pip install bitsandbytes"):
        replace(SCHEDULE, optimiser="adamw8bit").make_optimiser([torch.zeros(2)])


def test_unit_gaussian_has_no_divergence() -> None:
    assert kl_divergence(torch.zeros(1, 8, 2, 2)).item() == 0
    assert kl_divergence(torch.ones(1, 8, 2, 2)).item() > 0


@pytest.fixture(scope="module")
def caption_encoder() -> CaptionEncoder:
    folder = demo_tokenizer_dir()
    torch.manual_seed(0)
    tokenizer = ClipTokenizer(folder / "vocab.json", folder / "merges.txt")
    return CaptionEncoder(tokenizer.encode)


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_decoder_training_leaves_the_encoder_alone(progress: float) -> None:
    task = VAETask(new_demo_vae(), decoder_only=True)
    loss, figures = task.loss(Draw.at(0, 0), progress)
    loss.backward()  # type: ignore[no-untyped-call]
    assert "kl" not in figures
    vae = task.autoencoder
    assert all(p.grad is None for p in vae.encoder.parameters())
    assert all(p.grad is not None for p in vae.decoder.parameters())


def test_captions_become_padded_ids(caption_encoder: CaptionEncoder) -> None:
    ids = caption_encoder.token_ids(["a red circle", ""])
    assert ids.shape == (2, 77)
    assert (ids[1, 1:] == EOS).all()
    assert caption_encoder.token_ids(["red " * 200]).shape == (1, 77)


def test_untrained_words_share_one_vector(caption_encoder: CaptionEncoder) -> None:
    table = caption_encoder.finish().embed(torch.arange(VOCAB_SIZE))
    shared = table[VOCAB_SIZE // 2]
    same = (table == shared).all(dim=1)
    assert 48_000 < same.sum().item() < VOCAB_SIZE - 40


def test_text_task_reads_labels_of_both_positions(caption_encoder: CaptionEncoder) -> None:
    task = TextTask(caption_encoder, batch=4)
    loss, _ = task.loss(Draw.at(0, 0), 0.0)
    assert 10 < loss.item() < 30  # nine labels of about log(10) each, untrained
    accuracy = task.accuracy(task.model, count=8)
    assert set(accuracy) == {"end", "last"}


def test_unet_task_weighs_objects_and_samples(
    caption_encoder: CaptionEncoder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(DEMO_VAE)
    sets = [(encode_scenes(vae, 4, size, tmp_path / f"{size}.pt"), 0.5) for size in (128, 192)]
    again = encode_scenes(vae, 4, 128, tmp_path / "128.pt")
    torch.testing.assert_close(again.latents, sets[0][0].latents)
    with pytest.raises(CheckpointError, match="delete it"):
        encode_scenes(vae, 5, 128, tmp_path / "128.pt")
    unet = UNet2DConditionModel(replace(DEMO_UNET, block_out_channels=(32, 32, 32)))
    task = UNetTask(unet, caption_encoder, vae, sets, scaling_factor=1 / sets[0][0].std, batch=4)
    losses = [task.loss(Draw.at(0, step), 0.0)[0].item() for step in range(3)]
    assert all(0.1 < loss < 10 for loss in losses)
    pictures = task.pictures(unet, ["a red circle"], steps=2)
    assert pictures[0].shape == (128, 128, 3)
