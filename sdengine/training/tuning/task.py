"""Task of a tuning: the loss of noised latents under captions, whatever is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sdengine.samplers import NoiseSchedule
from sdengine.training.diffusion import Noised, Noising
from sdengine.training.loop import Draw
from sdengine.training.scenes import Image
from sdengine.training.tuning.dataset import Batch, Dataset
from sdengine.training.tuning.networks import Networks
from sdengine.training.tuning.texts import Text, TextEncoding

# Draws a sample sheet with the networks as they are.
Sheet = Callable[[], Image]


class TuningTask:
    """Train what changes a checkpoint's networks, which here is nothing.

    Args:
        networks: of the checkpoint; hooks of what is trained are on them.
        texts: encodes captions.
        dataset: of the user's pictures.
        model: what is trained, and saved in checkpoints.
        noising: options of `Noising`.
        sheet: draws sample sheets, or None.
    """

    def __init__(
        self,
        networks: Networks,
        texts: TextEncoding,
        dataset: Dataset,
        model: nn.Module,
        *,
        noise_offset: float = 0.0,
        min_snr: float = 0.0,
        sheet: Sheet | None = None,
    ) -> None:
        self.networks, self.texts, self.dataset, self.model = networks, texts, dataset, model
        schedule = NoiseSchedule.from_config(networks.architecture.scheduler)
        self.noising = Noising(schedule, noise_offset=noise_offset, min_snr=min_snr)
        self._sheet = sheet

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted squared error of what the U-Net predicts of one batch."""
        return self.batch_loss(self.dataset.batch(draw.number, draw), draw), {}

    def batch_loss(self, batch: Batch, draw: Draw) -> Tensor:
        """Return the loss of a batch, to which every picture adds alike."""
        noised = self.noising(self.networks.scaled(batch.latents), draw)
        with self.networks.autocast():
            text = self.texts.encode(batch.captions, self.vectors())
            predicted = self.predict(noised, text, batch)
        squared = (predicted.float() - noised.target) ** 2
        return (squared.mean(dim=(1, 2, 3)) * noised.weight).mean()

    def vectors(self) -> Mapping[str, Tensor] | None:
        """Return the learned vectors that captions name, [n,D] by text encoder."""
        return None

    def predict(self, noised: Noised, text: Text, batch: Batch) -> Tensor:
        """Return what the U-Net makes of noised latents, [B,C,h,w]."""
        out: Tensor = self.networks.unet(
            noised.x, noised.timestep, text.context, **self.added(text, batch)
        )
        return out

    def added(self, text: Text, batch: Batch) -> dict[str, Tensor]:
        """Return SDXL's further inputs."""
        if text.pooled is None:
            return {}
        return {"text_embeds": text.pooled, "time_ids": batch.sizes.to(self.networks.device)}

    def sheet(self, model: nn.Module) -> Image | None:
        """Return pictures of the prompts that were asked for, made by the engine."""
        if self._sheet is None:
            return None
        with torch.no_grad():
            return self._sheet()
