"""Keywords of `Engine.generate`: their types, and the fields of a request that they stand for."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypedDict

from sdengine.errors import ConfigError
from sdengine.request.control import Control
from sdengine.request.fields import Integer
from sdengine.request.ip_adapters import IPAdapter
from sdengine.request.region import Region
from sdengine.request.request import FIELDS, MAX_BATCH, random_seed, refuse_unknown

IMAGES_PER_PROMPT = "num_images_per_prompt"
WEB_UI_CLIP_SKIP = "web_ui_clip_skip"
RANDOM_SEED = -1
_SEEDS = ("seed", "variation_seed")
_HIRES_TEXTS = ("hires_prompt", "hires_negative_prompt")
# diffusers' spellings, and the fields that they set; all others are the same in both.
ALIASES: Mapping[str, str] = MappingProxyType(
    {info.alias: info.name for info in FIELDS.values() if info.alias}
)


class RequestOptions(TypedDict, total=False):
    """Every field of `sdengine.Request` but the prompts; what is left out or None is a default.

    The bundle gives the defaults of width, height, steps, guidance_scale, sampler and schedule;
    seeds default to random ones, as -1 asks for; the result records them.
    """

    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    sampler: str | None
    schedule: str | None
    eta: float | None
    s_noise: float | None
    s_churn: float | None
    s_tmin: float | None
    s_tmax: float | None
    seed: int | Sequence[int] | None
    batch_size: int | None
    variation_seed: int | None
    variation_strength: float | None
    seed_width: int | None
    seed_height: int | None
    noise: str | None
    emphasis: str | None
    clip_skip: int | None
    embeddings: Any
    loras: Any
    model: Any
    hypernetworks: Any
    decoder: str | None
    image: Any
    strength: float | None
    strength_rule: str | None
    resize: str | None
    encode: str | None
    background: str | None
    color_correction: bool | None
    mask: Any
    mask_blur: float | None
    mask_invert: bool | None
    masked_content: str | None
    inpaint_area: str | None
    mask_padding: int | None
    mask_blend: str | None
    soft_inpainting: bool | None
    outpaint: Any
    outpaint_fill: str | None
    outpaint_overlap: int | None
    depth: Any
    depth_invert: bool | None
    controls: Sequence[Control] | Control | None
    ip_adapters: Sequence[IPAdapter] | IPAdapter | None
    regions: Sequence[Region] | Region | None
    region_base: float | None
    hires: Any
    hires_upscaler: str | None
    hires_model: Any
    hires_strength: float | None
    hires_steps: int | None
    hires_sampler: str | None
    hires_schedule: str | None
    hires_prompt: str | Sequence[str] | None
    hires_negative_prompt: str | Sequence[str] | None
    tiled_diffusion: bool | None
    tile_size: tuple[int, int] | None
    tile_overlap: int | None
    seamless: str | None
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    aesthetic_score: float | None
    negative_aesthetic_score: float | None
    num_inference_steps: int | None
    num_images_per_prompt: int | None
    web_ui_clip_skip: int | None


def given_fields(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str],
    options: Mapping[str, Any],
    usual_clip_skip: int = 1,
) -> dict[str, Any]:
    """Return the fields of a request that the keywords give, not yet checked.

    num_images_per_prompt = n makes n images of each prompt one after the other: two prompts and
    n = 3 are a, a, a, b, b, b. Image i of all of them uses seed + i, and a list of seeds has one
    an image. A seed of -1 becomes a random one, and clip_skip.

    Args:
        prompt, negative_prompt, options: as for `Engine.generate`.
        usual_clip_skip: what the web UI calls the layer that the checkpoint reads.

    Raises:
        ConfigError: an option is unknown, or given under two names.
    """
    refuse_unknown(options, also={**ALIASES, WEB_UI_CLIP_SKIP: "clip_skip"})
    values = {name: value for name, value in options.items() if value is not None}
    for alias, name in ALIASES.items():
        if alias in values and name in values:
            raise ConfigError(f"{alias}, {name}: both are given; give one of them.")
    fields = {ALIASES.get(name, name): value for name, value in values.items()}
    if WEB_UI_CLIP_SKIP in fields:
        if "clip_skip" in fields:
            raise ConfigError(f"{WEB_UI_CLIP_SKIP}, clip_skip: both are given; give one of them.")
        counted = FIELDS["clip_skip"].check(WEB_UI_CLIP_SKIP, fields.pop(WEB_UI_CLIP_SKIP))
        fields["clip_skip"] = max(1, counted - usual_clip_skip + 1)
    fields |= {name: _drawn(fields[name]) for name in _SEEDS if name in fields}
    texts = {"prompt": prompt, "negative_prompt": negative_prompt}
    texts |= {name: fields.pop(name) for name in _HIRES_TEXTS if name in fields}
    if IMAGES_PER_PROMPT in values:
        count = Integer(1, MAX_BATCH)(IMAGES_PER_PROMPT, values[IMAGES_PER_PROMPT])
        lists = {name: text for name, text in texts.items() if isinstance(text, (list, tuple))}
        fields["batch_size"] = count * max([1, *map(len, lists.values())])
        if fields["batch_size"] <= MAX_BATCH:  # a request refuses more, and says so
            texts |= {
                name: [one for one in text for _ in range(count)] for name, text in lists.items()
            }
    return {**texts, **fields}


def _drawn(seed: Any) -> Any:
    """Return a seed, or a list of them, with random ones in the place of -1."""
    if isinstance(seed, (list, tuple)):
        return [_drawn(one) for one in seed]
    try:
        is_random = not isinstance(seed, bool) and operator.index(seed) == RANDOM_SEED
    except TypeError:  # which a request refuses
        return seed
    return random_seed() if is_random else seed
