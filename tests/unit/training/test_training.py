"""The training loop and the tasks: resuming, refusing, and losses that fall."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdengine.checkpoints import demo_tokenizer_dir
from sdengine.errors import CheckpointError, ConfigError
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL
from sdengine.prompt.tokenizer import ClipTokenizer
from sdengine.training.latents import encode_scenes
from sdengine.training.loop import Draw, Schedule, load_average, train
from sdengine.training.scenes import Image
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


def test_loss_falls_and_everything_is_written(tmp_path: Path) -> None:
    model = train(LineTask(), tmp_path, SCHEDULE, save_every=50, sheet_every=100)
    assert isinstance(model, nn.Linear)
    torch.testing.assert_close(model.weight, torch.ones(1, 2), atol=0.02, rtol=0)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [100, 200]
    assert records[1]["loss"] < records[0]["loss"]
    assert {p.name for p in tmp_path.glob("sheet-*.png")} == {
        "sheet-000100.png",
        "sheet-000200.png",
    }
    assert not list(tmp_path.glob(".*"))


def test_resumed_run_equals_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(LineTask(), tmp_path / "whole", SCHEDULE)

    def stop(step: int, steps: int, figures: dict[str, float]) -> None:
        if step == 130:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(LineTask(), tmp_path / "cut", SCHEDULE, save_every=40, report=stop)
    resumed = train(LineTask(), tmp_path / "cut", SCHEDULE, save_every=40)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_other_schedule_or_model_is_refused(tmp_path: Path) -> None:
    train(LineTask(), tmp_path, replace(SCHEDULE, steps=3))
    with pytest.raises(CheckpointError, match="use the same settings"):
        train(LineTask(), tmp_path, SCHEDULE)
    with pytest.raises(CheckpointError, match="another model"):
        load_average(tmp_path, nn.Linear(3, 1))
    with pytest.raises(CheckpointError, match="train it first"):
        load_average(tmp_path / "absent", nn.Linear(2, 1))


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a readable training checkpoint"):
        train(LineTask(), tmp_path, SCHEDULE)


@pytest.mark.parametrize("values", [{"steps": 0}, {"learning_rate": float("nan")}])
def test_bad_schedules_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        replace(SCHEDULE, **values)  # type: ignore[arg-type]


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [SCHEDULE.rate(step) for step in range(SCHEDULE.steps)]
    assert rates[0] < rates[3] < max(rates)
    assert rates[-1] < 0.03 * SCHEDULE.learning_rate


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
