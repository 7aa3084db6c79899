"""Noising: what networks are to predict, and what losses count."""

from __future__ import annotations

import pytest
import torch

from sdengine.errors import ConfigError
from sdengine.samplers import NoiseSchedule
from sdengine.training.diffusion import _DEMO_NOISING, Noising, v_loss
from sdengine.training.loop import Draw

CONFIG = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def noising(prediction_type: str = "epsilon", zero_snr: bool = False, **options: float) -> Noising:
    config = {**CONFIG, "prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    return Noising(NoiseSchedule.from_config(config), **options)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_what_is_predicted_gives_the_latents_back(prediction_type: str) -> None:
    x0 = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    one = noising(prediction_type)
    noised = one(x0, Draw.at(0, 0))
    signal = one.alphas_cumprod[noised.timestep][:, None, None, None]
    alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
    found = {
        "epsilon": (noised.x - sigma * noised.target) / alpha,
        "v_prediction": alpha * noised.x - sigma * noised.target,
        "sample": noised.target,
    }[prediction_type]
    torch.testing.assert_close(found, x0, atol=1e-4, rtol=1e-4)
    assert (noised.weight == 1).all()


def test_timesteps_of_a_batch_are_spread_over_the_range() -> None:
    one = noising()
    for number in range(20):
        timestep = one(torch.zeros(4, 4, 2, 2), Draw.at(0, number)).timestep
        assert [int(t) // 250 for t in timestep] == [0, 1, 2, 3]
    drawn = [int(one(torch.zeros(1, 4, 2, 2), Draw.at(0, n)).timestep) for n in range(400)]
    assert min(drawn) < 20 and max(drawn) > 980


@pytest.mark.parametrize("zero_snr", [False, True])
def test_min_snr_is_that_of_its_paper_and_finite_without_any_signal(zero_snr: bool) -> None:
    timestep = torch.arange(1000)
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        one = noising(prediction_type, zero_snr, min_snr=5.0)
        signal = one.alphas_cumprod.double()
        snr = signal / (1 - signal)
        bounded = snr.clamp(max=5.0)
        wanted = {"epsilon": bounded / snr, "v_prediction": bounded / (snr + 1), "sample": bounded}
        found = one.weights(timestep)
        torch.testing.assert_close(found.double(), wanted[prediction_type], atol=1e-6, rtol=1e-5)
        assert found.isfinite().all()
    # Nothing at all of the signal, as no table of ours has it, but others' do.
    one = noising("epsilon", min_snr=5.0)
    one.alphas_cumprod = torch.tensor([0.5, 0.0])
    assert one.weights(torch.tensor([0, 1])).tolist() == [1.0, 1.0]


def test_a_noise_offset_shifts_whole_channels() -> None:
    x0 = torch.zeros(64, 4, 16, 16)
    for offset in (0.0, 0.5):
        noise = noising(noise_offset=offset)(x0, Draw.at(0, 0)).target
        means = noise.mean(dim=(2, 3))
        assert abs(means.std().item() - (offset**2 + 1 / 256) ** 0.5) < 0.05
        inside = noise - means[..., None, None]
        assert abs(inside.std().item() - 1) < 0.01


def test_a_schedule_of_edm_is_refused() -> None:
    config = {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}
    with pytest.raises(ConfigError, match=r"checkpoint.*EDM"):
        Noising(NoiseSchedule.from_config(config))


def test_what_neighbours_differ_in_counts_for_itself() -> None:
    g = torch.Generator().manual_seed(0)
    x0, objects = torch.randn(4, 2, 3, 3, generator=g), torch.ones(4, 3, 3)
    apart = torch.rand(4, 3, 3, generator=g)
    target = _DEMO_NOISING(x0, Draw.at(0, 0), alike=2).target

    def loss(wrong: torch.Tensor, apart: torch.Tensor | None) -> float:
        guess = target + wrong
        return v_loss(lambda x, t: guess, x0, objects, Draw.at(0, 0), alike=2, apart=apart)[
            0
        ].item()

    same = torch.randn(2, 2, 3, 3, generator=g).repeat_interleave(2, dim=0)
    opposite = same * torch.tensor([1.0, -1, 1, -1])[:, None, None, None]
    # Both are equally wrong; of the second the difference is.
    assert loss(same, None) == pytest.approx(loss(opposite, None), rel=1e-5)
    assert loss(same, apart) == pytest.approx(loss(same, None), rel=1e-5)
    more = (opposite**2 * apart[:, None]).mean().item() / 3  # each cell weighs 3
    assert loss(opposite, apart) == pytest.approx(loss(opposite, None) + more, rel=1e-4)
