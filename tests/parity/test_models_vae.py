"""The autoencoder against diffusers', on equal weights."""

from __future__ import annotations

import diffusers
import pytest
import torch
from support.tiny_architectures import TINY_SD15
from tolerances import assert_close

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.configs import SD15, SDXL, ModelArchitecture
from sdengine.models.vae import AutoencoderKL, VAEConfig


@torch.no_grad()
def test_encode_and_decode_match() -> None:
    ours = AutoencoderKL(TINY_SD15.vae).eval()
    seed_weights(ours, seed=6)
    theirs = diffusers.AutoencoderKL.from_config(TINY_SD15.vae.to_dict()).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 40, generator=torch.Generator().manual_seed(7)) * 2 - 1

    moments = ours.encode(images)
    assert moments.shape == (2, 8, 8, 5)
    assert_close("vae", "float32", moments, theirs.encode(images).latent_dist.parameters)
    latents = moments[:, :4].clone()
    assert_close("vae", "float32", ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("family", [SD15, SDXL], ids=lambda family: family.name)
def test_full_size_has_the_published_names_shapes_and_count(family: ModelArchitecture) -> None:
    with torch.device("meta"):
        ours = AutoencoderKL(family.vae)
        theirs = diffusers.AutoencoderKL.from_config(family.vae.to_dict())
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


def test_config_survives_its_own_json() -> None:
    assert VAEConfig.from_dict(SDXL.vae.to_dict()) == SDXL.vae
