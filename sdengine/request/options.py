"""What `Engine.generate` and its siblings take by keyword, with types for editors and checkers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class RequestOptions(TypedDict, total=False):
    """Every field of `sdengine.Request` but the prompts; what is left out or None is a default.

    The bundle gives the defaults of width, height, steps, guidance_scale, sampler and schedule;
    seeds default to random ones, which the result records.
    """

    width: int | None
    height: int | None
    steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
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
    original_size: tuple[int, int] | None
    crop: tuple[int, int] | None
    target_size: tuple[int, int] | None
    aesthetic_score: float | None
    negative_aesthetic_score: float | None
