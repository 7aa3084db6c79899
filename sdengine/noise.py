"""Reproducible noise: the same values for a seed as torch's generators, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.errors import ConfigError

_SEED_LIMIT = 2**64
Array = NDArray[np.float32]


class _Native(Protocol):
    def fill(self, out: Array) -> None: ...


class Generator:
    """Draw standard normal values; consecutive draws continue the stream."""

    def __init__(self, native: _Native) -> None:
        self._native = native

    def randn(self, shape: Sequence[int]) -> Array:
        """Draw the next values of the stream.

        Args:
            shape: of the result.

        Returns:
            [*shape] float32 of mean 0 and variance 1.
        """
        values = np.empty(tuple(shape), dtype=np.float32)
        self._native.fill(values)
        return values


class CpuGenerator(Generator):
    """Draw standard normal values as ``torch.randn`` with a seeded CPU generator does.

    Draws of fewer than 16 values take another path through the stream than larger ones, as in
    torch; so two draws of 8 are not one of 16.

    Args:
        seed: 0 to 2**64 - 1; seeds with the same low 32 bits give the same values.

    Raises:
        ConfigError: the seed is not such a number.

    Source: "Mersenne Twister" (Matsumoto and Nishimura 1998); "A Note on the Generation of Random
    Normal Deviates" (Box and Muller 1958).
    """

    def __init__(self, seed: int) -> None:
        super().__init__(_native.MersenneNormal(_checked(seed)))


class CudaGenerator(Generator):
    """Draw standard normal values as ``torch.randn`` with a seeded CUDA generator does.

    Equal to torch's for draws of up to as many values as the device holds threads, at least 65,536
    on every device with 32 multiprocessors of 2048 threads; larger draws of torch's depend on the
    device. Values agree to the last bits of a logarithm and a sine. Checked against the known
    answers of Philox4x32-10 and against values that were published for a CUDA device.

    Args:
        seed: 0 to 2**64 - 1.

    Raises:
        ConfigError: the seed is not such a number.

    Source: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al. 2011); cuRAND's documented
    Box-Muller transform.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(_native.PhiloxNormal(_checked(seed)))


GENERATORS: dict[str, type[CpuGenerator] | type[CudaGenerator]] = {
    "cpu": CpuGenerator,
    "cuda": CudaGenerator,
}


class NoiseSource:
    """The noise of a batch of images: each draws from generators of its own.

    So an image of a batch equals the one made alone.

    Args:
        seeds: one an image.
        shape: [C,h,w] of one image's latents.
        kind: a key of GENERATORS.
        variation_seeds: one an image, of a second noise; None for none.
        variation_strength: 0 to 1, how far the initial noise goes over to the second one.
        resize_from: (h, w) of the latents whose noise is taken: it is placed in the middle of the
            image's own, cut where it is larger. None for the image's own size.

    Source: spherical interpolation, "Animating Rotation with Quaternion Curves" (Shoemake 1985).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        *,
        kind: str = "cpu",
        variation_seeds: Sequence[int] | None = None,
        variation_strength: float = 0.0,
        resize_from: tuple[int, int] | None = None,
    ) -> None:
        make = GENERATORS[kind]
        self._shape = shape
        self._seeds = tuple(seeds)
        self._make = make
        self._generators = [make(seed) for seed in seeds]
        self._variation_seeds = variation_seeds
        self._variation_strength = variation_strength
        self._resize_from = resize_from

    def initial(self) -> Array:
        """Draw the unit noise [B,C,h,w] that trajectories start from."""
        noise = np.empty((len(self._seeds), *self._shape), dtype=np.float32)
        for index, generator in enumerate(self._generators):
            noise[index] = self._first(index, generator)
        return noise

    def step(self, out: Array) -> None:
        """Draw the next noise of every image into out [B,C,h,w]."""
        for image, generator in zip(out, self._generators, strict=True):
            image[...] = generator.randn((1, *image.shape))[0]

    def _first(self, index: int, generator: Generator) -> Array:
        channels, height, width = self._shape
        drawn = self._resize_from or (height, width)
        noise: Array = generator.randn((1, channels, *drawn))[0]
        if self._variation_seeds is not None and self._variation_strength > 0:
            variation = self._make(self._variation_seeds[index]).randn((1, channels, *drawn))[0]
            noise = slerp(noise, variation, self._variation_strength)
        if self._resize_from is not None:
            # What the smaller noise leaves open comes from the image's own.
            base = self._make(self._seeds[index]).randn((1, *self._shape))[0]
            noise = _place_centred(noise, base)
        return noise


def slerp(low: Array, high: Array, share: float) -> Array:
    """Interpolate on the sphere, so that the result has the length of noise again.

    Args:
        low, high: arrays of one shape.
        share: 0 gives low, 1 gives high.
    """
    a, b = low.astype(np.float64).ravel(), high.astype(np.float64).ravel()
    cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    if abs(cosine) > 0.9995:  # nearly parallel: the arc is a line
        return np.asarray(low * (1 - share) + high * share, dtype=np.float32)
    angle = np.arccos(cosine)
    mixed = (np.sin((1 - share) * angle) * low + np.sin(share * angle) * high) / np.sin(angle)
    return np.asarray(mixed, dtype=np.float32)


def _place_centred(noise: Array, base: Array) -> Array:
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(noise.shape[1:], base.shape[1:], strict=True):
        size = min(have, want)
        source.append(slice((have - size) // 2, (have - size) // 2 + size))
        target.append(slice((want - size) // 2, (want - size) // 2 + size))
    base[tuple(target)] = noise[tuple(source)]
    return base


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEED_LIMIT:
        raise ConfigError.for_field("seed", seed, "a whole number from 0 to 2**64 - 1")
    return seed
