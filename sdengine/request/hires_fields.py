"""Request fields of a second pass at a larger size, which the web UI calls hires fix."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sdengine.errors import ConfigError
from sdengine.inputs import upscaler
from sdengine.inputs.recorded import Recorded
from sdengine.request.fields import (
    PROMPT,
    Choice,
    FileField,
    Integer,
    Name,
    Number,
    OneOrEach,
    about,
)

# Ways to enlarge latents, by the interpolation that they are.
LATENT_UPSCALERS = {
    "latent": "bilinear",
    "latent_antialiased": "bilinear_antialiased",
    "latent_bicubic": "bicubic",
    "latent_bicubic_antialiased": "bicubic_antialiased",
    "latent_nearest": "nearest",
    "latent_nearest_exact": "nearest_exact",
}
PIXEL_UPSCALERS = ("lanczos", "nearest")
UPSCALERS = (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)
# What `Engine.request` gives where a model is given and this is not.
MODEL_UPSCALER = "lanczos"
# Enlarged latents are blurred or blocky until so much of them is gone.
LEAST_LATENT_STRENGTH = 0.5
MAX_SIDE, MAX_STEPS = 16384, 1000
_MOST_COVERED = MAX_SIDE * MAX_SIDE
_PROMPTS, _NAME = OneOrEach(PROMPT), Name("a name; `sdengine samplers` lists them")
_FACTOR, _SIDE = Number(1, 8), Integer(0, MAX_SIDE)
_FACTOR_TEXT = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,9})?)x?")
_SIZE_TEXT = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")


@dataclass(frozen=True)
class HiresField:
    """A factor, as 2, 1.5 or "2x", or a width and height, of which one may be 0: it follows."""

    accepted: str = (
        "a factor from 1 to 8 such as 2x, or a size such as 1024x768; 0 for a side that follows"
    )
    range: str = ""

    def __call__(self, name: str, value: Any) -> float | tuple[int, int]:
        """Return the factor, or the width and height."""
        if isinstance(value, str):
            if size := _SIZE_TEXT.fullmatch(value.strip().lower()):
                value = int(size[1]), int(size[2])
            elif factor := _FACTOR_TEXT.fullmatch(value.strip().lower()):
                value = float(factor[1])
        if isinstance(value, (list, tuple)):
            if len(value) != 2 or not any(value):
                raise ConfigError.for_field(name, value, self.accepted)
            return _SIDE(name, value[0]), _SIDE(name, value[1])
        if isinstance(value, str):
            raise ConfigError.for_field(name, value[:80], self.accepted)
        try:
            return _FACTOR(name, value)
        except ConfigError:
            raise ConfigError.for_field(name, value, self.accepted) from None


def hires_text(value: float | tuple[int, int]) -> str:
    """Return a factor or a size as the command takes it."""
    return "{}x{}".format(*value) if isinstance(value, tuple) else f"{value:g}x"


@dataclass(frozen=True, kw_only=True)
class HiresFields:
    """Those fields of a request that ask for a second pass; see `sdengine.Request`."""

    hires: float | tuple[int, int] | None = field(
        default=None,
        metadata=about(
            HiresField(),
            "a second pass at a larger size, from the first one's result enlarged: a factor such "
            "as 2x, or a size such as 1024x768, where 0 stands for a side that follows",
            ("Hires upscale", "Hires resize"),
        ),
    )
    hires_upscaler: str = field(
        default="latent",
        metadata=about(
            Choice(UPSCALERS),
            "hires: how the result is enlarged; its latents, which are not decoded, or its pixels",
            ("Hires upscaler",),
        ),
    )
    hires_model: Recorded | None = field(
        default=None,
        metadata=about(
            FileField(upscaler.ACCEPTED, upscaler.read_upscaler),
            "hires: ONNX file of an upscaler of the ESRGAN kind that enlarges the pixels first",
        ),
    )
    hires_strength: float = field(
        default=0.7,
        metadata=about(
            Number(0, 1),
            "hires: how much of the way from noise is gone again; latent upscalers need 0.5",
            ("Denoising strength",),
        ),
    )
    hires_steps: int = field(
        default=0,
        metadata=about(
            Integer(0, MAX_STEPS), "hires: steps that run in it; 0 for steps", ("Hires steps",)
        ),
    )
    hires_sampler: str | None = field(
        default=None,
        metadata=about(_NAME, "hires: its sampler; by default the first one's", ("Hires sampler",)),
    )
    hires_schedule: str | None = field(
        default=None,
        metadata=about(
            _NAME,
            "hires: its schedule; by default the one in hires_sampler's name, else the first one's",
            ("Hires schedule type",),
        ),
    )
    hires_prompt: str | tuple[str, ...] | None = field(
        default=None,
        metadata=about(
            _PROMPTS, "hires: what it is to show; by default as the first", ("Hires prompt",)
        ),
    )
    hires_negative_prompt: str | tuple[str, ...] | None = field(
        default=None,
        metadata=about(
            _PROMPTS,
            "hires: what it is to avoid; by default as the first",
            ("Hires negative prompt",),
            option="hires_negative",
        ),
    )

    def check_hires(self, width: int, height: int, steps: int) -> None:
        """Refuse a second pass that is too large, or that has too little to do.

        Args:
            width, height, steps: of the first pass.

        Raises:
            ConfigError: so it is.
        """
        if self.hires is None:
            return
        if self.hires_model is not None and self.hires_upscaler not in PIXEL_UPSCALERS:
            accepted = f"{' or '.join(PIXEL_UPSCALERS)} with hires_model"
            raise ConfigError.for_field("hires_upscaler", self.hires_upscaler, accepted)
        if (size := self.hires_size(width, height)) and not 8 <= min(size) <= max(size) <= MAX_SIDE:
            shown = "{}x{} from {}x{}".format(*size, width, height)
            raise ConfigError.for_field("hires", shown, f"sides from 8 to {MAX_SIDE}")
        cover = self.hires_cover(width, height)
        if cover[0] * cover[1] > _MOST_COVERED:
            shown = "{}x{}, cut out of {}x{}".format(*size, *cover)
            hint = "Give a size of about the proportions of width and height."
            raise ConfigError.for_field(
                "hires", shown, f"at most {_MOST_COVERED} pixels to cut it out of", hint
            )
        count = self.hires_steps or steps
        if count >= MAX_STEPS:
            accepted = f"1 to {MAX_STEPS - 1}, of a schedule of at most {MAX_STEPS} steps"
            raise ConfigError.for_field("hires_steps", self.hires_steps, accepted)
        if count > self.hires_strength * MAX_STEPS:
            raise ConfigError.for_field(
                "hires_strength",
                self.hires_strength,
                f"at least {count / MAX_STEPS:g}, so that {count} of at most {MAX_STEPS} steps run",
            )

    def hires_cover(self, width: int, height: int) -> tuple[int, int]:
        """Return the size to which an image is enlarged, of which `hires_size` is the middle.

        Source: the web UI's; sides that follow are whole numbers rounded down.
        """
        target = self.hires
        assert target is not None
        if not isinstance(target, tuple):
            return int(width * target), int(height * target)
        wanted_width, wanted_height = target
        is_by_width = wanted_width * height >= wanted_height * width  # also where the other is 0
        if is_by_width:
            return wanted_width, wanted_width * height // width
        return wanted_height * width // height, wanted_height

    def hires_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the second pass of an image size."""
        target, covered = self.hires, self.hires_cover(width, height)
        if not isinstance(target, tuple):
            return covered
        return target[0] or covered[0], target[1] or covered[1]
