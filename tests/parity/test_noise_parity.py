"""Noise against torch's CPU generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from sdengine.samplers.noise import CpuGenerator, NoiseSource

SEEDS = (0, 1, 7, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
SHAPES = ((1,), (15,), (16,), (17,), (31,), (100,), (4, 64, 64), (1, 4, 9, 7))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_draw(seed: int, shape: tuple[int, ...]) -> None:
    expected = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert_close("randn", "float32", CpuGenerator(seed).randn(shape), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 80), min_size=1, max_size=8))
def test_consecutive_draws(seed: int, counts: list[int]) -> None:
    generator = CpuGenerator(seed)
    theirs = torch.Generator().manual_seed(seed)
    for count in counts:
        assert_close(
            "randn", "float32", generator.randn((count,)), torch.randn(count, generator=theirs)
        )


def test_each_image_has_a_generator_of_its_own() -> None:
    noise = NoiseSource(range(2**64 - 3, 2**64), (4, 8, 8)).initial()
    for image, seed in zip(noise, range(2**64 - 3, 2**64), strict=True):
        expected = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))[0]
        assert_close("randn", "float32", image, expected)


def test_noise_of_steps_goes_on_with_each_generator() -> None:
    source = NoiseSource([3, 70], (4, 8, 6))
    theirs = [torch.Generator().manual_seed(seed) for seed in (3, 70)]
    for draw in range(3):
        found = source.initial() if draw == 0 else np.empty((2, 4, 8, 6), np.float32)
        if draw > 0:
            source.step(found)
        for image, generator in zip(found, theirs, strict=True):
            expected = torch.randn(4, 8, 6, generator=generator)
            assert_close("randn", "float32", image, expected)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9, 1.0])
def test_variation_mixes_columns_by_their_angle(strength: float) -> None:
    """Columns of latents, one value a row, are the vectors that turn."""
    first, second = (
        torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(seed)).double()
        for seed in (5, 6)
    )
    angle = torch.nn.functional.cosine_similarity(first, second, dim=1).acos()[:, None]
    mixed = ((1 - strength) * angle).sin() * first + (strength * angle).sin() * second
    source = NoiseSource([5], (4, 16, 8), variation_seeds=[6], variation_strength=strength)
    assert_close("randn", "float32", source.initial()[0], mixed / angle.sin())
