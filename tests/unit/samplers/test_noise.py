"""The generator without an oracle: stream, statistics, refusals."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from sdengine import _native
from sdengine.errors import ConfigError
from sdengine.samplers.noise import CpuGenerator, CudaGenerator, NoiseSource, slerp


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


SHAPE = (4, 6, 5)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "options",
    [{}, {"variation_seeds": [7, 8, 9], "variation_strength": 0.3}, {"resize_from": (8, 3)}],
)
def test_batch_equals_single_images(kind: str, options: dict[str, Any]) -> None:
    seeds = [9, 2, 77]
    source = NoiseSource(seeds, SHAPE, kind=kind, **options)
    batch, later = source.initial(), np.empty((3, *SHAPE), np.float32)
    source.step(later)
    for index, seed in enumerate(seeds):
        own = dict(options)
        if "variation_seeds" in own:
            own["variation_seeds"] = [own["variation_seeds"][index]]
        alone = NoiseSource([seed], SHAPE, kind=kind, **own)
        np.testing.assert_array_equal(batch[index], alone.initial()[0])
        step = np.empty((1, *SHAPE), np.float32)
        alone.step(step)
        np.testing.assert_array_equal(later[index], step[0])


def test_variation_goes_from_one_noise_to_the_other() -> None:
    def noise(strength: float) -> Any:
        source = NoiseSource([1], SHAPE, variation_seeds=[5], variation_strength=strength)
        return source.initial()[0]

    own, other = (NoiseSource([seed], SHAPE).initial()[0] for seed in (1, 5))
    np.testing.assert_array_equal(noise(0.0), own)
    np.testing.assert_allclose(noise(1.0), other, atol=1e-6)
    distances = [np.linalg.norm(noise(s) - own) for s in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert distances == sorted(distances)


def test_variation_turns_every_column_evenly() -> None:
    low, high = (CpuGenerator(seed).randn(SHAPE) for seed in (1, 2))

    def angles(a: Any, b: Any) -> Any:
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.arccos((a * b).sum(axis=1) / lengths)

    # Unit columns stay unit columns, and their angle grows in proportion.
    low, high = (noise / np.linalg.norm(noise, axis=1, keepdims=True) for noise in (low, high))
    whole = angles(low, high)
    for share in (0.25, 0.5, 0.75):
        found = slerp(low, high, share)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(angles(low, found), share * whole, atol=2e-3)
        np.testing.assert_allclose(angles(found, high), (1 - share) * whole, atol=2e-3)


def test_variation_of_columns_without_an_angle() -> None:
    low, high = (CpuGenerator(seed).randn((4, 1, 5)) for seed in (1, 2))  # of one value each
    np.testing.assert_allclose(slerp(low, high, 0.25), 0.75 * low + 0.25 * high, rtol=1e-6)
    tall = CpuGenerator(3).randn(SHAPE)
    np.testing.assert_allclose(slerp(tall, tall, 0.3), tall, rtol=1e-6)
    np.testing.assert_allclose(slerp(tall, -tall, 0.25), 0.5 * tall, rtol=1e-6)
    assert np.all(slerp(np.zeros_like(tall), tall, 0.0) == 0)


# (h, w) of the noise taken, and which rows and columns of SHAPE's 6 x 5 it covers from where: the
# web UI halves margins and excesses towards minus infinity.
PLACES = {
    (4, 3): ((1, 5, 0), (1, 4, 0)),
    (3, 2): ((1, 4, 0), (1, 3, 0)),
    (10, 9): ((0, 6, 2), (0, 5, 2)),
    (9, 8): ((0, 5, 2), (0, 4, 2)),
    (4, 9): ((1, 5, 0), (0, 5, 2)),
    (6, 5): ((0, 6, 0), (0, 5, 0)),
}


@pytest.mark.parametrize(("size", "place"), PLACES.items())
def test_seed_resize_keeps_the_middle(
    size: tuple[int, int], place: tuple[tuple[int, int, int], tuple[int, int, int]]
) -> None:
    (top, bottom, down), (left, right, along) = place
    expected = CpuGenerator(3).randn(SHAPE)
    other = CpuGenerator(3).randn((4, *size))
    rows, columns = bottom - top, right - left
    part = other[:, down : down + rows, along : along + columns]
    expected[:, top:bottom, left:right] = part
    found = NoiseSource([3], SHAPE, resize_from=size).initial()[0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "options",
    [{"resize_from": (8, 3)}, {"variation_seeds": [7], "variation_strength": 0.3}],
)
def test_steps_go_on_from_the_noise_of_the_own_size(kind: str, options: dict[str, Any]) -> None:
    plain, changed = (
        NoiseSource([9], SHAPE, kind=kind),
        NoiseSource([9], SHAPE, kind=kind, **options),
    )
    assert not np.array_equal(plain.initial(), changed.initial())
    expected, found = np.empty((2, 1, *SHAPE), np.float32)
    for _ in range(2):
        plain.step(expected)
        changed.step(found)
        np.testing.assert_array_equal(found, expected)


# Printed by a public notebook for torch.randn on a CUDA device under seed 0.
PUBLISHED_CUDA = [
    -0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284,
    -1.0745, -0.3631, -1.6711, 2.2655, 0.3117, -0.1842, 1.2866, 1.1820,
    -0.1271, 1.2169, 1.4353, 1.0605, -0.4941, -1.4244, -0.7244, -1.2973,
]  # fmt: skip


def test_cuda_generator_gives_the_published_values() -> None:
    found = CudaGenerator(0).randn((3, 8))
    np.testing.assert_allclose(found.ravel(), PUBLISHED_CUDA, atol=5.1e-5)


def philox_reference(seed: int, draw: int, count: int) -> Any:
    """Follow Salmon et al. 2011 and Box and Muller in NumPy, every value a counter of its own."""
    words = [np.full(count, draw, np.uint64), np.zeros(count, np.uint64)]
    words += [np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        products = np.uint64(0xD2511F53) * words[0], np.uint64(0xCD9E8D57) * words[2]
        words = [
            (products[1] >> np.uint64(32)) ^ words[1] ^ np.uint64(key[0]),
            products[1] & low,
            (products[0] >> np.uint64(32)) ^ words[3] ^ np.uint64(key[1]),
            products[0] & low,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    u, v = ((word.astype(np.float64) + 0.5) / 2**32 for word in words[:2])
    return np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)


@pytest.mark.parametrize("seed", [0, 12345, 2**32 + 7, 2**64 - 1])
def test_cuda_generator_follows_philox(seed: int) -> None:
    generator = CudaGenerator(seed)
    for draw in range(3):
        found = generator.randn((4, 9, 7))
        expected = philox_reference(seed, draw, found.size)
        np.testing.assert_allclose(found.ravel(), expected, atol=2e-6)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1", True, None])
def test_refuses_what_is_no_seed(seed: object) -> None:
    with pytest.raises(ConfigError, match=r"^seed: .* an integer from 0 to 2\*\*64 - 1"):
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
