"""The autoencoder against diffusers', on equal weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from support.tiny_architectures import TINY_SD15
from tolerances import assert_close

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.configs import SD15, SDXL, ModelArchitecture
from sdengine.models.vae import AutoencoderKL, VAEConfig


@pytest.mark.parametrize("convs", [(True, True), (False, True), (True, False)])
@torch.no_grad()
def test_encode_and_decode_match(convs: tuple[bool, bool]) -> None:
    config = replace(TINY_SD15.vae, use_quant_conv=convs[0], use_post_quant_conv=convs[1])
    ours = AutoencoderKL(config).eval()
    seed_weights(ours, seed=6)
    theirs = diffusers.AutoencoderKL.from_config(config.to_dict()).eval()
    theirs.load_state_dict(ours.state_dict())
    # What fp32 rounds differently in another order depends on the processor.
    ours, theirs = ours.double(), theirs.double()
    images = torch.rand(2, 3, 64, 40, generator=torch.Generator().manual_seed(7)).double() * 2 - 1

    moments = ours.encode(images)
    assert moments.shape == (2, 8, 8, 5)
    assert_close("vae", "float64", moments, theirs.encode(images).latent_dist.parameters)
    latents = moments[:, :4].clone()
    assert_close("vae", "float64", ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize(
    "said",
    [
        {"latents_mean": (-1.6, 1.1, 3.5, -0.7), "latents_std": (8.4, 5.0, 5.3, 5.2)},
        {"shift_factor": 0.25},
    ],
)
@torch.no_grad()
def test_statistics_of_the_latents_are_taken_off_and_put_back(said: dict[str, Any]) -> None:
    plain = AutoencoderKL(TINY_SD15.vae).eval()
    seed_weights(plain, seed=6)
    ours = AutoencoderKL(VAEConfig.from_dict({**TINY_SD15.vae.to_dict(), **said})).eval()
    ours.load_state_dict(plain.state_dict())
    mean = torch.tensor(said.get("latents_mean", [0.25] * 4)).view(1, 4, 1, 1)
    std = torch.tensor(said.get("latents_std", [1.0] * 4)).view(1, 4, 1, 1)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    # As the pipeline of SDXL: latents * latents_std / scaling_factor + latents_mean.
    assert_close("vae", "float32", ours.decode(latents), plain.decode(latents * std + mean))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8)) * 2 - 1
    found, expected = ours.encode(images).chunk(2, 1), plain.encode(images).chunk(2, 1)
    assert_close("vae", "float32", found[0], (expected[0] - mean) / std)
    assert_close("vae", "float32", (found[1] / 2).exp(), (expected[1] / 2).exp() / std)


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
