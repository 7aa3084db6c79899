"""Names, limits and invariants of sampler programs."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.errors import ConfigError
from sdengine.samplers import (
    SAMPLERS,
    SCHEDULES,
    NoiseSchedule,
    build_program,
    run_step_reference,
    sample_reference,
)

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 333, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_program_is_finite_at_any_step_count(
    sampler: str, schedule: str, spacing: str, steps: int
) -> None:
    noise_schedule = NoiseSchedule.from_config({**CONFIG, "timestep_spacing": spacing})
    program = build_program(sampler, schedule, steps, noise_schedule)
    assert program.t.shape == program.c_in.shape == program.sigma.shape == (steps,)
    for numbers in (program.t, program.c_in, program.sigma, program.A, program.b, program.d):
        assert np.isfinite(numbers).all()
    assert ((program.t >= 0) & (program.t <= 999)).all()
    assert (np.diff(program.sigma) <= 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_perfect_denoiser_is_reproduced(sampler: str, schedule: str) -> None:
    """A network that always knows the clean latents must lead to exactly them."""
    clean = np.random.default_rng(0).standard_normal((1, 4, 4, 4))
    noise_schedule = NoiseSchedule.from_config({**CONFIG, "prediction_type": "sample"})
    program = build_program(sampler, schedule, 20, noise_schedule)
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    last = sample_reference(program, lambda x, t: clean, noise, lambda k: noise)[-1]
    np.testing.assert_allclose(last, clean, atol=1e-9)


def test_ancestral_sampler_alone_needs_noise() -> None:
    for name in SAMPLERS:
        program = build_program(name, "normal", 5, NoiseSchedule.from_config(CONFIG))
        assert any(program.needs_noise) == (name == "euler_a")
        assert not program.needs_noise[-1]


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
    with pytest.raises(ConfigError, match=r"sampler: 'eulr'.*ddim, euler.*Did you mean 'euler'"):
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
    ],
)
def test_bad_scheduler_configs_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change)).split("_")[0]):
        NoiseSchedule.from_config({**CONFIG, **change})
