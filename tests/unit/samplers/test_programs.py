"""Names, limits and invariants of sampler programs."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.errors import ConfigError
from sdengine.samplers import (
    REFUSED,
    SAMPLERS,
    SCHEDULES,
    NoiseSchedule,
    SamplerOptions,
    build_program,
    resolve_names,
)
from sdengine.samplers.reference import run_step_reference, sample_reference

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


# Spacings only matter where the schedule is the checkpoint's own.
WALKS = [("leading", schedule) for schedule in SCHEDULES]
WALKS += [("linspace", "normal"), ("trailing", "normal")]


@pytest.mark.parametrize(
    ("spacing", "schedule", "steps"),
    [(*walk, steps) for walk in WALKS for steps in (1, 2, 7)]
    + [("leading", schedule, 1000) for schedule in ("normal", "karras")],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_program_is_finite_at_any_step_count(
    sampler: str, schedule: str, spacing: str, steps: int
) -> None:
    noise_schedule = NoiseSchedule.from_config({**CONFIG, "timestep_spacing": spacing})
    if steps > 50 and schedule == "normal" and sampler in ("lcm", "tcd"):
        with pytest.raises(ConfigError, match="at most 50"):
            build_program(sampler, schedule, steps, noise_schedule)
        return
    program = build_program(sampler, schedule, steps, noise_schedule)
    evaluations = SAMPLERS[sampler].evaluations * steps
    # Two-evaluation samplers end in a single one; PLMS repeats its second.
    assert evaluations - 1 <= len(program.t) <= evaluations + (sampler == "pndm")
    assert program.t.shape == program.c_in.shape == program.sigma.shape == program.step.shape
    assert set(program.step) == set(range(steps))
    assert (np.diff(program.step) >= 0).all()
    for numbers in (program.t, program.c_in, program.sigma, program.A, program.b, program.d):
        assert np.isfinite(numbers).all()
    assert ((program.t >= 0) & (program.t <= 999)).all()
    firsts = program.sigma[np.searchsorted(program.step, np.arange(steps))]
    assert (np.diff(firsts) <= 0).all()


# These stop at the training schedule's lowest level by design, as published.
STOPS_ABOVE_ZERO = {"deis", "lcm", "tcd"}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_perfect_denoiser_is_reproduced(sampler: str, schedule: str) -> None:
    """A network that always knows the clean latents must lead to exactly them."""
    clean = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    noise_schedule = NoiseSchedule.from_config({**CONFIG, "prediction_type": "sample"})
    program = build_program(sampler, schedule, 20, noise_schedule)
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    last = sample_reference(program, lambda x, t: clean, noise, lambda k: noise)[-1]
    lowest = float(noise_schedule.sigmas[0])
    tolerance = 10 * lowest if sampler in STOPS_ABOVE_ZERO else 1e-9
    np.testing.assert_allclose(last, clean, atol=tolerance)


STOCHASTIC = {
    "ddpm", "euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun",
    "dpmpp_3m_sde", "lcm", "tcd",
}  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stochastic_samplers_alone_need_noise(sampler: str) -> None:
    program = build_program(sampler, "normal", 5, NoiseSchedule.from_config(CONFIG))
    assert any(program.needs_noise) == (sampler in STOCHASTIC)
    assert not program.needs_noise[-1]
    assert program.init_noise == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_options_are_the_samplers_own(sampler: str) -> None:
    noise_schedule = NoiseSchedule.from_config(CONFIG)
    plain = build_program(sampler, "karras", 6, noise_schedule)
    values = {"eta": 0.5, "s_noise": 1.1, "s_churn": 2.0, "s_tmin": 1.0, "s_tmax": 5.0}
    for name, value in values.items():
        options = {name: value}
        if name.startswith("s_t") or (name == "s_noise" and "s_churn" in SAMPLERS[sampler].options):
            options["s_churn"] = 2.0
        if name not in SAMPLERS[sampler].options:
            with pytest.raises(ConfigError, match="is not accepted"):
                build_program(sampler, "karras", 6, noise_schedule, SamplerOptions(**options))
            continue
        program = build_program(sampler, "karras", 6, noise_schedule, SamplerOptions(**options))
        numbers = [(p.A, p.b, p.d, p.init_noise) for p in (plain, program)]
        assert any(not np.array_equal(a, b) for a, b in zip(*numbers, strict=True)), name


def test_zero_eta_is_deterministic() -> None:
    noise_schedule = NoiseSchedule.from_config(CONFIG)
    for sampler in ("euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "tcd", "ddim"):
        program = build_program(sampler, "karras", 6, noise_schedule, SamplerOptions(eta=0.0))
        assert not any(program.needs_noise), sampler


@pytest.mark.parametrize("name", ["eta", "s_noise", "s_churn", "s_tmin", "s_tmax"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), "1"])
def test_bad_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplerOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("DPM++ 2M Karras", None), ("dpmpp_2m", "karras")),
        (("dpm++ 2m sde exponential", None), ("dpmpp_2m_sde", "exponential")),
        (("DPM++ 2M SDE Heun", None), ("dpmpp_2m_sde_heun", "exponential")),
        (("Euler a", None), ("euler_a", "normal")),
        (("k_dpm_2_a", "Beta"), ("dpm2_a", "beta")),
        (("DPM++ 2M Karras", "simple"), ("dpmpp_2m", "simple")),
        (("PNDMScheduler", None), ("pndm", "normal")),
    ],
)
def test_names_that_people_know(given: tuple[str, str | None], expected: tuple[str, str]) -> None:
    assert resolve_names(*given) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_program_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not accepted: .*[a-z]"):
        build_program(name, "normal", 4, NoiseSchedule.from_config(CONFIG))


def test_zero_terminal_snr() -> None:
    config = {**CONFIG, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    noise_schedule = NoiseSchedule.from_config({**config, "timestep_spacing": "trailing"})
    assert noise_schedule.alphas_cumprod[-1] == 2.0**-24
    plain = NoiseSchedule.from_config(CONFIG)
    assert noise_schedule.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0])
    for sampler in SAMPLERS:
        program = build_program(sampler, "normal", 10, noise_schedule)
        assert program.t[0] == 999
        assert np.isfinite(program.A).all() and np.isfinite(program.b).all(), sampler


def test_betas_that_a_file_lists_are_its_noise_schedule() -> None:
    betas = np.linspace(0.001, 0.02, 100)
    config = {**CONFIG, "num_train_timesteps": 100, "trained_betas": betas.tolist()}
    read = NoiseSchedule.from_config(config)
    np.testing.assert_allclose(read.alphas_cumprod, np.cumprod(1 - betas))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_in_edms_process(sampler: str, schedule: str) -> None:
    """A network that always knows the clean latents must lead to exactly them."""
    clean = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    noise_schedule = NoiseSchedule.from_config({"_class_name": "EDMEulerScheduler"})
    program = build_program(sampler, schedule, 20, noise_schedule)

    def denoiser(read: np.ndarray, t: float) -> np.ndarray:
        sigma = np.exp(4 * t)
        noisy = read * np.sqrt(sigma**2 + 0.25)
        skipped = 0.25 / (sigma**2 + 0.25) * noisy
        return np.asarray((clean - skipped) * np.sqrt(sigma**2 + 0.25) / (sigma * 0.5))

    noise = np.random.default_rng(1).standard_normal(clean.shape)
    last = sample_reference(program, denoiser, noise, lambda k: noise)[-1]
    np.testing.assert_allclose(last, clean, atol=0.05 if sampler in STOPS_ABOVE_ZERO else 1e-6)


def test_beta_quantiles_are_scipys() -> None:
    from scipy import stats

    from sdengine.samplers.sigmas import beta_quantile

    probability = np.linspace(0, 1, 1001)
    for shapes in ((0.6, 0.6), (0.5, 2.0), (3.0, 1.5)):
        expected = stats.beta.ppf(probability, *shapes)
        np.testing.assert_allclose(beta_quantile(probability, *shapes), expected, atol=1e-12)


def test_guidance_extrapolates_from_unconditional_rows() -> None:
    registers = np.zeros((1, 1, 2))
    rows = np.array([[1.0, 2.0], [3.0, 5.0]])
    finite = run_step_reference(
        registers, rows, 3.0, np.zeros((1, 1)), np.ones(1), np.zeros(1), None
    )
    assert finite
    np.testing.assert_array_equal(registers[0], [[7.0, 11.0]])


@pytest.mark.parametrize("name", ["DPM++ 2M", "dpm++ 2m", "DPMPP_2M"])
def test_names_are_found_in_any_spelling(name: str) -> None:
    program = build_program(name, "Karras", 4, NoiseSchedule.from_config(CONFIG))
    assert (program.sampler, program.schedule) == ("dpmpp_2m", "karras")


def test_unknown_name_lists_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"sampler: 'eulr'.*ddim, .*Did you mean 'euler'"):
        build_program("eulr", "normal", 4, NoiseSchedule.from_config(CONFIG))


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**9, True, 2.0, None])
def test_bad_step_counts_are_refused(steps: object) -> None:
    with pytest.raises(ConfigError, match="steps"):
        build_program("euler", "normal", steps, NoiseSchedule.from_config(CONFIG))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"beta_start": float("nan")},
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": "1000"},
        {"prediction_type": "flow"},
        {"timestep_spacing": "odd"},
        {"beta_schedule": "squared"},
        {"trained_betas": [0.1] * 999},
        {"trained_betas": [0.1] * 999 + [1.0]},
        {"trained_betas": [0.1] * 999 + [True]},
        {"trained_betas": 0.1},
        {"timestep_type": "odd"},
        {"sigma_max": -1.0},
        {"original_inference_steps": 0},
        {"timestep_scaling": "10"},
        {"_class_name": "EDMEulerScheduler", "rho": 5.0},
        {"_class_name": "EDMEulerScheduler", "sigma_min": 100.0},
        {"_class_name": "EDMEulerScheduler", "sigma_schedule": "beta"},
        {"_class_name": "EDMEulerScheduler", "sigma_data": 0.0},
        {"_class_name": "EDMEulerScheduler", "prediction_type": "sample"},
    ],
)
def test_bad_scheduler_configs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=list(change)[-1].split("_")[0]):
        NoiseSchedule.from_config({**CONFIG, **change})


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_program_carries_the_names_that_it_was_asked_for(name: str) -> None:
    schedule = SAMPLERS[name].default_schedule
    program = build_program(name, schedule, 5, NoiseSchedule.from_config(CONFIG))
    assert (program.sampler, program.schedule) == (name, schedule)
