"""Reproducible noise: the same values for a seed as torch's CPU generator, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.errors import ConfigError

_SEED_LIMIT = 2**64


class CpuGenerator:
    """Draw standard normal values as ``torch.randn`` with a seeded CPU generator does.

    Consecutive draws continue the stream. Draws of fewer than 16 values take another path through
    it than larger ones, as in torch; so two draws of 8 are not one of 16.

    Args:
        seed: 0 to 2**64 - 1; seeds with the same low 32 bits give the same values.

    Raises:
        ConfigError: the seed is not such a number.

    Source: "Mersenne Twister" (Matsumoto and Nishimura 1998); "A Note on the Generation of Random
    Normal Deviates" (Box and Muller 1958).
    """

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEED_LIMIT:
            raise ConfigError.for_field("seed", seed, "a whole number from 0 to 2**64 - 1")
        self._generator = _native.MersenneNormal(seed)

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Draw the next values of the stream.

        Args:
            shape: of the result.

        Returns:
            [*shape] float32 of mean 0 and variance 1.
        """
        values = np.empty(tuple(shape), dtype=np.float32)
        self._generator.fill(values)
        return values


def initial_noise(
    seed: int, batch: int, channels: int, height: int, width: int
) -> NDArray[np.float32]:
    """Draw the noise that a batch of images starts from.

    Args:
        seed: of the first image; image i uses seed + i, so it equals the one made alone.
        batch: number of images.
        channels, height, width: of the latents.

    Returns:
        [batch,channels,height,width] float32 unit noise.

    Raises:
        ConfigError: seed or seed + batch - 1 is outside 0 to 2**64 - 1.
    """
    noise = np.empty((batch, channels, height, width), dtype=np.float32)
    for index in range(batch):
        noise[index] = CpuGenerator(seed + index).randn((1, channels, height, width))[0]
    return noise
