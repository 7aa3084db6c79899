"""The generator without an oracle: stream, statistics, refusals."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sdengine import _native
from sdengine.errors import ConfigError
from sdengine.noise import CpuGenerator, initial_noise


def test_known_values() -> None:
    # What torch prints for torch.randn(4) and torch.randn(16)[:4] after torch.manual_seed(0).
    small = CpuGenerator(0).randn((4,))
    np.testing.assert_allclose(small, [1.5410, -0.2934, -2.1788, 0.5684], atol=5e-5)
    large = CpuGenerator(0).randn((16,))[:4]
    np.testing.assert_allclose(large, [-1.1258, -1.1524, -0.2506, -0.4339], atol=5e-5)


def test_equal_seeds_give_equal_streams() -> None:
    first, second = CpuGenerator(5), CpuGenerator(5)
    for shape in ((3,), (4, 5), (2, 16), (1,)):
        np.testing.assert_array_equal(first.randn(shape), second.randn(shape))
    assert not np.array_equal(CpuGenerator(5).randn((16,)), CpuGenerator(6).randn((16,)))


def test_values_are_standard_normal() -> None:
    values = CpuGenerator(11).randn((400, 500)).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.1
    assert np.isfinite(values).all()


def test_empty_draw_leaves_the_stream() -> None:
    generator = CpuGenerator(1)
    assert generator.randn((0, 4)).shape == (0, 4)
    np.testing.assert_array_equal(generator.randn((20,)), CpuGenerator(1).randn((20,)))


def test_batch_equals_single_images() -> None:
    batch = initial_noise(9, 3, 4, 5, 6)
    assert batch.shape == (3, 4, 5, 6)
    for index in range(3):
        np.testing.assert_array_equal(batch[index], initial_noise(9 + index, 1, 4, 5, 6)[0])


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True, None])
def test_refuses_what_is_no_seed(seed: object) -> None:
    with pytest.raises(ConfigError, match=r"^seed: .* a whole number from 0 to 2\*\*64 - 1"):
        CpuGenerator(seed)  # type: ignore[arg-type]


def test_fill_checks_its_array() -> None:
    generator = _native.MersenneNormal(0)
    with pytest.raises(TypeError, match="out: is float64; expected float32"):
        generator.fill(np.empty(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not C-contiguous"):
        generator.fill(np.empty((4, 4), np.float32)[:, ::2])
    frozen = np.empty(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        generator.fill(frozen)


def test_threads_share_a_generator_without_mixing_draws() -> None:
    generator = _native.MersenneNormal(3)
    draws = [np.empty(4096, np.float32) for _ in range(8)]
    threads = [threading.Thread(target=generator.fill, args=(draw,)) for draw in draws]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = CpuGenerator(3)
    expected = {alone.randn((4096,)).tobytes() for _ in draws}
    assert {draw.tobytes() for draw in draws} == expected
