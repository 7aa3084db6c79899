"""ControlNet: a copy of a U-Net's way down that learns to steer it; the U-Net stays as it is.

Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al. 2023),
section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdengine.errors import ConfigError
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel
from sdengine.models.unet import UNet2DConditionModel
from sdengine.training.diffusion import Noised
from sdengine.training.tuning.dataset import Batch
from sdengine.training.tuning.task import TuningTask
from sdengine.training.tuning.texts import Text

# The hint encoder's widths: each one but the first halves the sides.
HINT_WIDTHS = (16, 32, 96, 256)


def controlnet_of(unet: UNet2DConditionModel, widths: Sequence[int]) -> ControlNetModel:
    """Return a ControlNet that begins as a copy of a U-Net's way down and adds nothing yet."""
    torch.manual_seed(0)
    config = ControlNetConfig(unet.config, conditioning_embedding_out_channels=tuple(widths))
    net = ControlNetModel(config)
    own = net.state_dict()
    shared = {name: value for name, value in unet.state_dict().items() if name in own}
    net.load_state_dict({**own, **shared})
    return net


def hint_widths(downscale: int) -> tuple[int, ...]:
    """Return widths that bring a hint to the sides of latents.

    Raises:
        ConfigError: the autoencoder makes cells of too many pixels.
    """
    count = downscale.bit_length()
    if count > len(HINT_WIDTHS):
        raise ConfigError.for_field(
            "checkpoint", f"latents of {downscale} pixels a cell", "at most 8 pixels a cell"
        )
    return HINT_WIDTHS[:count]


class ControlTask(TuningTask):
    """Train a ControlNet on hints."""

    def predict(self, noised: Noised, text: Text, batch: Batch) -> Tensor:
        """Return the U-Net's prediction, with the ControlNet's residuals added."""
        assert batch.hints is not None
        added, context = self.added(text, batch), text.context
        hints = batch.hints.to(noised.x.device)
        down, mid = self.model(noised.x, noised.timestep, context, hints, **added)
        out: Tensor = self.networks.unet(
            noised.x,
            noised.timestep,
            context,
            **added,
            down_residuals=down,
            mid_residual=mid,
        )
        return out
