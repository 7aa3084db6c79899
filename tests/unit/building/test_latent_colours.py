"""The colours of latents, found by least squares."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sdengine.building.latent_colours import fit_latent_rgb
from sdengine.bundle.architecture import VAEArchitecture
from sdengine.bundle.reader import open_bundle
from sdengine.checkpoints import load_checkpoint
from sdengine.models.vae import AutoencoderKL, VAEConfig
from sdengine.pipeline.previews import linear_preview, preview_method
from sdengine.training.scenes import random_scene, render

ROWS = [[0.1, 0.2, 0.3]] * 5
MIXED = torch.tensor([[0.4, 0.3, -0.2], [0.1, -0.5, 0.3], [0.2, 0.2, 0.6], [0.5, 0.1, 0.1]])


class _Mixing(AutoencoderKL):
    """Encodes to mixtures of a cell's mean colour, and decodes them to that colour."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        mean = torch.einsum("lc,bchw->blhw", MIXED, F.avg_pool2d(images, 2)) + 0.25
        return torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        colours = torch.einsum("cl,blhw->bchw", torch.linalg.pinv(MIXED), latents - 0.25)
        return F.interpolate(colours, scale_factor=2.0)


def test_a_linear_encoder_is_undone_exactly() -> None:
    config = VAEConfig(block_out_channels=(4, 4), norm_num_groups=2, scaling_factor=0.5)
    found = fit_latent_rgb(_Mixing(config))
    assert found is not None
    rows, error = found
    assert error < 1e-4
    colours = np.random.default_rng(0).uniform(-1, 1, (7, 3))
    latents = (colours @ MIXED.numpy().T + 0.25) * 0.5
    np.testing.assert_allclose(latents @ rows[:-1] + rows[-1], colours, atol=1e-4)


def test_values_that_are_no_numbers_give_none() -> None:
    config = VAEConfig(block_out_channels=(4, 4), norm_num_groups=2)
    vae = AutoencoderKL(config)
    torch.nn.init.constant_(vae.encoder.conv_in.weight, float("nan"))
    assert fit_latent_rgb(vae) is None


@torch.no_grad()
def test_the_demo_models_pictures_are_recognised() -> None:
    checkpoint = load_checkpoint("demo")
    vae, scale = checkpoint.vae(), checkpoint.vae_config.scaling_factor
    rows, error = fit_latent_rgb(vae) or (None, 0.0)
    architecture = VAEArchitecture.model_validate(
        {"scaling_factor": scale, "latent_channels": 4, "latent_rgb": rows}
    )
    shown, wanted = [], []
    for seed in range(6):
        scene = render(random_scene(random.Random(seed)), np.random.default_rng(seed))
        pixels = np.asarray(scene, np.float32)
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / 127.5 - 1)
        latents = (vae.encode(image)[:, :4] * scale).numpy()
        shown.append(linear_preview(latents, architecture)[0])
        wanted.append(pixels.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3)))
    # This small autoencoder is far from linear: even the map that fits these pictures best errs by
    # half of what a grey picture would.
    assert np.corrcoef(np.ravel(shown), np.ravel(wanted))[0, 1] > 0.7
    assert 0.4 < error < 0.8  # so that previews are made by the VAE unless asked otherwise


@pytest.mark.parametrize(
    ("fitted", "method"),
    [
        ({}, "vae"),
        ({"latent_rgb": ROWS}, "linear"),  # of a bundle that does not say how well
        ({"latent_rgb": ROWS, "latent_rgb_error": 0.3}, "linear"),
        ({"latent_rgb": ROWS, "latent_rgb_error": 0.5}, "vae"),
    ],
)
def test_previews_are_linear_where_colours_follow(fitted: dict[str, Any], method: str) -> None:
    manifest = open_bundle("demo").manifest
    dumped = manifest.architecture.vae.model_dump()
    assert "latent_rgb_error" not in dumped
    vae = VAEArchitecture.model_validate({**dumped, **fitted})
    assert vae.model_dump() == {**dumped, **fitted}
    architecture = manifest.architecture.model_copy(update={"vae": vae})
    changed = manifest.model_copy(update={"architecture": architecture})
    assert preview_method(changed, None) == method
    if fitted:
        assert preview_method(changed, "linear") == "linear"
