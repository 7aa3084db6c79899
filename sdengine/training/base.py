"""Base training: text encoder and U-Net, on top of a trained autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sdengine.models.attention import set_attention_impl
from sdengine.models.unet import UNet2DConditionModel
from sdengine.training.assemble import new_caption_encoder
from sdengine.training.latents import LatentSet, encode_scenes
from sdengine.training.loop import Report, load_average, train
from sdengine.training.schedule import Schedule
from sdengine.training.text import TextTask
from sdengine.training.unet import DEMO_UNET, UNetTask
from sdengine.training.vae import new_demo_vae

# Picture sizes with the share of steps that each gets; the demo bundle is built for all three.
SIZE_SHARES = {128: 0.86, 192: 0.08, 256: 0.06}


def train_text(run: Path, steps: int, report: Report | None = None) -> dict[str, float]:
    """Train the text encoder into ``run/text``; return the share of captions read right."""
    task = TextTask(new_caption_encoder())
    schedule = Schedule(steps=steps, learning_rate=1e-3, weight_decay=0.01)
    model = train(task, run / "text", schedule, save_every=250, report=report)
    return task.accuracy(model)


def load_latents(
    run: Path,
    counts: dict[int, int],
    report: Callable[[int, int], None] | None = None,
) -> list[LatentSet]:
    """Encode scenes with the run's autoencoder, or read what an earlier call encoded.

    Args:
        run: folder with a trained ``vae``; receives ``latents/SIZE.pt``.
        counts: scenes to encode for each picture size.
        report: called with (done, count) while encoding.
    """
    vae = new_demo_vae()
    load_average(run / "vae", vae)
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return [
        encode_scenes(vae, count, size, run / "latents" / f"{size}.pt", report)
        for size, count in counts.items()
    ]


@dataclass
class UNetJob:
    """Train the U-Net into ``run/unet``; picklable, so that several processes can share the work.

    Attributes:
        run: folder with trained ``vae`` and ``text`` and with encoded ``latents``.
        counts: scenes for each picture size, as they were encoded.
        steps, learning_rate: of the schedule.
        batch: latents per step and process.
        report: shows progress; only the first process calls it.
    """

    run: Path
    counts: dict[int, int]
    steps: int
    learning_rate: float
    batch: int
    report: Report | None = None

    def __call__(self) -> None:
        """Train to the end of the schedule, from the last checkpoint."""
        text = TextTask(new_caption_encoder())
        load_average(self.run / "text", text.model)
        vae = new_demo_vae()
        load_average(self.run / "vae", vae)
        sets = load_latents(self.run, self.counts)
        torch.manual_seed(1)
        unet = UNet2DConditionModel(DEMO_UNET)
        set_attention_impl(unet, "plain")
        channels_last: nn.Module = unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert channels_last is unet
        task = UNetTask(
            unet,
            text.encoder,
            vae,
            [(s, SIZE_SHARES[s.size]) for s in sets],
            scaling_factor=1 / sets[0].std,
            batch=self.batch,
        )
        schedule = Schedule(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup=150,
            weight_decay=0.01,
            ema_decay=0.999,
        )
        train(task, self.run / "unet", schedule, save_every=250, report=self.report)
