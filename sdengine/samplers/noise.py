"""Reproducible noise: the same values for a seed as torch's generators, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.errors import ConfigError

_SEED_LIMIT = 2**64
Array = NDArray[np.float32]
_NativeGenerator: TypeAlias = "_native.MersenneNormal | _native.PhiloxNormal"


class Generator:
    """Draw standard normal values; consecutive draws continue the stream."""

    def __init__(self, native: _NativeGenerator) -> None:
        self.native = native

    def randn(self, shape: Sequence[int]) -> Array:
        """Draw the next values of the stream.

        Args:
            shape: of the result.

        Returns:
            [*shape] float32 of mean 0 and variance 1.
        """
        values = np.empty(tuple(shape), dtype=np.float32)
        self.native.fill(values)
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

    torch gives each value a thread of its own until the device is full, which is at
    ``multiprocessors * (threads_of_one // 256) * 256`` values. Draws of at most that many are the
    same on every device, and these ones. That holds for the latents of 768 x 768 pixels (36,864
    values) on GPUs with 24 multiprocessors of 1536 threads or more, for those of 1024 x 1024
    (65,536) with 43 such or 32 of 2048. In larger draws torch's values depend on the device; here
    they are those of a device that is never full.

    Checked: Philox4x32-10 against its published known answers, the transform against fp64 to 2e-6,
    the whole against values published for a CUDA device to their four decimals. Not run beside
    torch on a GPU, whose fast sine alone may differ by about 3e-6.

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

    So an image of a batch equals the one made alone. Noise of steps goes on from where the image's
    own initial noise, at its own size, left its seed's stream; variations take nothing from it.

    Args:
        seeds: one an image.
        shape: [C,h,w] of one image's latents.
        kind: a key of GENERATORS.
        variation_seeds: one an image, of a second noise; None for none.
        variation_strength: 0 to 1, how far the initial noise goes over to the second one.
        resize_from: (h, w) of the latents whose noise is taken: it is placed in the middle of the
            image's own, cut where it is larger. None for the image's own size.

    Source: the variation seeds and seed resizing of the widely used web UI, which these follow.
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

    @property
    def generators(self) -> list[_NativeGenerator]:
        """One native generator an image, for code that draws steps' noise without Python."""
        return [generator.native for generator in self._generators]

    def initial(self) -> Array:
        """Draw the unit noise [B,C,h,w] that trajectories start from."""
        firsts = [self._first(index, one) for index, one in enumerate(self._generators)]
        return firsts[0][np.newaxis] if len(firsts) == 1 else np.stack(firsts)

    def step(self, out: Array) -> None:
        """Draw the next noise of every image into out [B,C,h,w]."""
        for image, generator in zip(out, self._generators, strict=True):
            image[...] = generator.randn((1, *image.shape))[0]

    def _first(self, index: int, generator: Generator) -> Array:
        channels, height, width = self._shape
        own: Array = generator.randn((1, *self._shape))[0]
        noise, drawn = own, (1, *self._shape)
        if self._resize_from is not None and self._resize_from != (height, width):
            drawn = (1, channels, *self._resize_from)
            noise = self._make(self._seeds[index]).randn(drawn)[0]
        if self._variation_seeds is not None and self._variation_strength > 0:
            variation = self._make(self._variation_seeds[index]).randn(drawn)[0]
            noise = slerp(noise, variation, self._variation_strength)
        return noise if noise.shape == own.shape else _placed_in_the_middle(noise, own)


def slerp(low: Array, high: Array, share: float) -> Array:
    """Interpolate every column of two noises on the sphere, so that the result is as long as noise.

    Args:
        low, high: [C,h,w] float32; the h values over each other are one vector.
        share: 0 gives low, 1 gives high.

    Returns:
        [C,h,w] float32.

    Source: "Animating Rotation with Quaternion Curves" (Shoemake 1985); columns as vectors are the
    web UI's choice.
    """
    a, b = low.astype(np.float64), high.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1, keepdims=True) * np.linalg.norm(b, axis=1, keepdims=True)
    cosine = (a * b).sum(axis=1, keepdims=True) / np.maximum(lengths, np.finfo(np.float64).tiny)
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.sin(angle)
    parallel = sine < 1e-4  # the arc is a line, or not defined
    safe = np.where(parallel, 1, sine)
    from_low = np.where(parallel, 1 - share, np.sin((1 - share) * angle) / safe)
    from_high = np.where(parallel, share, np.sin(share * angle) / safe)
    mixed: Array = (from_low * a + from_high * b).astype(np.float32)
    return mixed


def _placed_in_the_middle(noise: Array, base: Array) -> Array:
    """Write noise over the middle of base; of an odd margin the lesser half comes first.

    Larger noise loses as much on both sides, so that an odd excess leaves one line of base.
    """
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(noise.shape[1:], base.shape[1:], strict=True):
        margin = (want - have) // 2
        cut, first = max(-margin, 0), max(margin, 0)
        size = have - 2 * cut
        source.append(slice(cut, cut + size))
        target.append(slice(first, first + size))
    base[tuple(target)] = noise[tuple(source)]
    return base


def _checked(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < _SEED_LIMIT:
        raise ConfigError.for_field("seed", seed, "an integer from 0 to 2**64 - 1")
    return seed
