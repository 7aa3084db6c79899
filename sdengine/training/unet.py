"""Training of the U-Net: predict v of noised latents, given the frozen text encoder's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL
from sdengine.training.captions import caption
from sdengine.training.diffusion import sample, v_loss
from sdengine.training.latents import LatentSet
from sdengine.training.loop import Draw
from sdengine.training.scenes import Image, Scene, random_scene
from sdengine.training.text import CaptionEncoder, with_filler
from sdengine.training.vae import to_images

DEMO_UNET = UNetConfig(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    # No attention on the finest level: it would halve the training speed for little.
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(64, 128, 160),
    layers_per_block=1,
    cross_attention_dim=128,
    attention_head_dim=4,
    norm_num_groups=8,
)
# What bundles of the demo model are built for: the sides that it is trained at, and a batch.
DEMO_SIDES, DEMO_BATCH = (128, 192, 256), 4
# Stable Diffusion's noise schedule with v-prediction; diffusers' DDIMScheduler reads it as it is.
DEMO_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
_CAPTION_DROPOUT = 0.1


class UNetTask:
    """Train the U-Net on cached latents of one or several sizes.

    Args:
        unet: the network, with plain attention (faster than SDPA in bf16 on a CPU).
        text: the frozen caption encoder.
        vae: used for sample sheets only.
        latents: the sets to draw from, with the share of steps that each gets.
        scaling_factor: what unscaled latents are multiplied with.
        batch: latents per step and process at the first set's size; larger sizes get fewer.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text: CaptionEncoder,
        vae: AutoencoderKL,
        latents: Sequence[tuple[LatentSet, float]],
        *,
        scaling_factor: float,
        batch: int = 32,
    ) -> None:
        self.model: nn.Module = unet
        self.text = text.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.sets = [s for s, _ in latents]
        self.shares = [share for _, share in latents]
        self.scaling_factor = scaling_factor
        self.batch = batch

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of v on one batch, see `v_loss`."""
        chosen = draw.python.choices(self.sets, self.shares)[0]
        count = max(1, round(self.batch * (self.sets[0].size / chosen.size) ** 2))
        index = [draw.python.randrange(len(chosen.scenes)) for _ in range(count)]
        x0 = chosen.latents[index].float() * self.scaling_factor
        texts = [self._caption(chosen.scenes[i], draw) for i in index]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            context = self.text(self.text.token_ids(texts))
        return v_loss(
            lambda x, timestep: self.model(x, timestep, context), x0, chosen.weights[index], draw
        )

    def sheet(self, model: nn.Module) -> Image:
        """Return 32 pictures of held-out captions, eight to a row, one object above two."""
        draw = Draw.at(3, 0)
        scenes = [
            random_scene(draw.python, num_objects=1 if i < 16 else 2, held_out=True)
            for i in range(32)
        ]
        images = self.pictures(model, [caption(s, draw.python) for s in scenes])
        rows = [np.concatenate(images[i : i + 8], axis=1) for i in range(0, 32, 8)]
        return np.concatenate(rows, axis=0)

    @torch.no_grad()
    def pictures(
        self,
        model: nn.Module,
        texts: Sequence[str],
        *,
        steps: int = 20,
        guidance_scale: float = 3.0,
        size: int = 128,
        seed: int = 0,
    ) -> list[Image]:
        """Return a picture of each text, see `sample`."""
        side = size // self.vae.config.downscale
        with torch.autocast("cpu", torch.bfloat16):
            context = self.text(self.text.token_ids([*[""] * len(texts), *texts]))
            x0 = sample(
                lambda x, timestep: model(x, timestep, context),
                (len(texts), self.vae.config.latent_channels, side, side),
                steps=steps,
                guidance_scale=guidance_scale,
                seed=seed,
            )
            decoded = self.vae.decode(x0 / self.scaling_factor)
        return to_images(decoded)

    def _caption(self, scene: Scene, draw: Draw) -> str:
        if draw.python.random() < _CAPTION_DROPOUT:
            return ""
        return with_filler(caption(scene, draw.python), draw.python)
