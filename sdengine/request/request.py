"""What a caller asks for, checked before any work starts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields, replace
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.fields import choice, number, pair, text, whole

MAX_STEPS = 1000
MAX_SIDE = 16384
MAX_BATCH = 256
MAX_GUIDANCE = 100.0
MAX_SEED = 2**64 - 1
MAX_PROMPT_CHARACTERS = 100_000
SIZE_MULTIPLE = 8
EMPHASIS = ("original", "no_norm", "none", "literal")
NOISE_KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Request:
    """One text-to-image request; constructing it checks every field.

    Args:
        prompt: what to show: one text for all images, or a tuple of one an image.
        negative_prompt: what to avoid, likewise; has an effect when guidance_scale > 1.
        width, height: pixels, multiples of 8.
        steps: sampler steps, 1 to 1000.
        guidance_scale: 0 to 100; at 1 and below the unconditional half is not computed.
        guidance_rescale: 0 to 1, how far guidance keeps the contrast of the conditional output.
        sampler, schedule: names or labels, as `sdengine samplers` lists them.
        eta, s_noise, s_churn, s_tmin, s_tmax: the sampler's options; None is its default.
        seed: 0 to 2**64 - 1; image i of the batch uses seed + i. Or a tuple of one an image.
        batch_size: number of images, 1 to 256; follows from a tuple where one is given.
        variation_seed: of a second noise; image i uses variation_seed + i.
        variation_strength: 0 to 1, how far the noise goes over to the second one.
        seed_width, seed_height: pixels of the size whose noise is taken, both or neither.
        noise: "cpu" for the noise of torch's CPU generator, "cuda" for that of its CUDA one.
        emphasis: what weights in prompts do, one of EMPHASIS.
        clip_skip: 1 takes the hidden state that the checkpoint asks for, 2 that of the layer before
            it, and so on to 12; None is 1.
        original_size, target_size: (width, height) that a U-Net with size conditioning is told;
            None is the image's own.
        crop: (left, top) in pixels that it is told.
        aesthetic_score, negative_aesthetic_score: 0 to 100, what a refiner is told.

    Raises:
        ConfigError: a field has the wrong type or is out of range; the message names it.
    """

    prompt: str | tuple[str, ...]
    negative_prompt: str | tuple[str, ...] = ""
    width: int = 512
    height: int = 512
    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    eta: float | None = None
    s_noise: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    seed: int | tuple[int, ...] = 0
    batch_size: int = 1
    variation_seed: int | None = None
    variation_strength: float = 0.0
    seed_width: int | None = None
    seed_height: int | None = None
    noise: str = "cpu"
    emphasis: str = "original"
    clip_skip: int | None = None
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5

    def __post_init__(self) -> None:
        self._set("batch_size", whole("batch_size", self.batch_size, 1, MAX_BATCH))
        self._check_prompts()
        self._check_sizes()
        self._check_sampling()
        self._check_noise()

    def _check_prompts(self) -> None:
        for name in ("prompt", "negative_prompt"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                value = tuple(text(name, one, MAX_PROMPT_CHARACTERS) for one in value)
                self._take_count(name, len(value))
            else:
                value = text(name, value, MAX_PROMPT_CHARACTERS)
            self._set(name, value)
        self._set("emphasis", choice("emphasis", self.emphasis, EMPHASIS))
        if self.clip_skip is not None:
            self._set("clip_skip", whole("clip_skip", self.clip_skip, 1, 12))

    def _check_sizes(self) -> None:
        self._set("width", _side("width", self.width))
        self._set("height", _side("height", self.height))
        if (self.seed_width is None) != (self.seed_height is None):
            raise ConfigError("seed_width, seed_height: give both or neither.")
        if self.seed_width is not None:
            self._set("seed_width", _side("seed_width", self.seed_width))
            self._set("seed_height", _side("seed_height", self.seed_height))
        for name, low in (("original_size", 1), ("target_size", 1), ("crop", 0)):
            if getattr(self, name) is not None:
                self._set(name, pair(name, getattr(self, name), low, MAX_SIDE))

    def _check_sampling(self) -> None:
        self._set("steps", whole("steps", self.steps, 1, MAX_STEPS))
        limits: tuple[tuple[str, float, float], ...] = (
            ("guidance_scale", 0, MAX_GUIDANCE),
            ("guidance_rescale", 0, 1),
            ("eta", 0, 1),
            ("s_noise", 0, 2),
            ("s_churn", 0, 1000),
            ("s_tmin", 0, 1e6),
            ("s_tmax", 0, 1e6),
            ("variation_strength", 0, 1),
            ("aesthetic_score", 0, 100),
            ("negative_aesthetic_score", 0, 100),
        )
        optional = {field.name for field in fields(self) if field.default is None}
        for name, low, high in limits:
            value = getattr(self, name)
            if value is not None or name not in optional:
                self._set(name, number(name, value, low, high))
        for name in ("sampler", "schedule"):
            if not isinstance(getattr(self, name), str):
                accepted = "a name; `sdengine samplers` lists them"
                raise ConfigError.for_field(name, getattr(self, name), accepted)

    def _check_noise(self) -> None:
        self._set("noise", choice("noise", self.noise, NOISE_KINDS))
        if isinstance(self.seed, (list, tuple)):
            self._set("seed", tuple(whole("seed", seed, 0, MAX_SEED) for seed in self.seed))
            assert isinstance(self.seed, tuple)
            self._take_count("seed", len(self.seed))
        else:
            self._set("seed", self._first_seed("seed", self.seed))
        if self.variation_seed is not None:
            self._set("variation_seed", self._first_seed("variation_seed", self.variation_seed))
        elif self.variation_strength > 0:
            raise ConfigError.for_field(
                "variation_seed", None, "a seed, because variation_strength is not 0"
            )

    def _first_seed(self, name: str, value: Any) -> int:
        seed = whole(name, value, 0, MAX_SEED)
        if seed + self.batch_size - 1 > MAX_SEED:
            accepted = f"at most {MAX_SEED - self.batch_size + 1} for {self.batch_size} images"
            raise ConfigError.for_field(name, seed, accepted)
        return seed

    def _take_count(self, name: str, count: int) -> None:
        """Let a tuple of one value an image say how many images there are."""
        if self.batch_size == 1 and 1 <= count <= MAX_BATCH:
            self._set("batch_size", count)
        if count != self.batch_size:
            raise ConfigError(
                f"{name}: {count} values for {self.batch_size} images. Give one value for all "
                f"images, or one an image, at most {MAX_BATCH}."
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each image."""
        return self._for_each(self.prompt)

    @property
    def negative_prompts(self) -> tuple[str, ...]:
        """The negative prompt of each image."""
        return self._for_each(self.negative_prompt)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        if isinstance(self.seed, tuple):
            return self.seed
        return tuple(self.seed + index for index in range(self.batch_size))

    @property
    def uses_guidance(self) -> bool:
        """Whether the guidance scale asks for the unconditional half."""
        return self.guidance_scale > 1.0

    def only(self, index: int) -> Request:
        """Return the request that makes image `index` alone."""
        variation_seed = self.variation_seed
        return replace(
            self,
            prompt=self.prompts[index],
            negative_prompt=self.negative_prompts[index],
            seed=self.seeds[index],
            batch_size=1,
            variation_seed=None if variation_seed is None else variation_seed + index,
        )

    def _for_each(self, value: str | tuple[str, ...]) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else (value,) * self.batch_size


def random_seed() -> int:
    """Draw a seed of 32 bits: what every other tool accepts."""
    return secrets.randbelow(2**32)


def _side(field: str, value: Any) -> int:
    size = whole(field, value, SIZE_MULTIPLE, MAX_SIDE)
    if size % SIZE_MULTIPLE:
        lower = size - size % SIZE_MULTIPLE
        hint = f"Nearest: {lower} and {lower + SIZE_MULTIPLE}."
        raise ConfigError.for_field(field, size, f"a multiple of {SIZE_MULTIPLE}", hint)
    return size
