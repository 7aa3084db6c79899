"""Warm-up: requests that load what later requests of the same sizes will use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdengine.bundle.controls import ControlArchitecture
from sdengine.bundle.manifest import Manifest
from sdengine.errors import ConfigError
from sdengine.prompt.planner import MAX_CHUNKS
from sdengine.request.control import CONTROL_TYPES
from sdengine.request.fields import Integer, Pair
from sdengine.request.hires_fields import MAX_SIDE
from sdengine.request.request import MAX_BATCH, SIZE_MULTIPLE, Request

_SAMPLER = "euler"


def warm_up_requests(
    manifest: Manifest,
    sizes: Sequence[tuple[int, int]] | None,
    batch: int,
    prompt_chunks: int,
    guidance: bool,
    most_shapes: int,
    controls: Sequence[str] = (),
    seamless: str = "none",
) -> list[Request]:
    """Return one request of one step for each size; arguments as for `Engine.warm_up`.

    Args:
        most_shapes: of a network that stay loaded.
        controls: names of those that requests are steered by.
        seamless: of the requests.

    Raises:
        ConfigError: an argument is invalid, or more networks would be loaded than are kept.
    """
    defaults = manifest.defaults
    wanted = [(defaults.width, defaults.height)] if sizes is None else _distinct(sizes)
    Integer(1, MAX_BATCH)("batch", batch)
    Integer(1, MAX_CHUNKS)("prompt_chunks", prompt_chunks)
    # The U-Net is loaded for a full chunk of the batch, and for what is left over.
    per_size = len({min(batch, manifest.max_batch), batch % manifest.max_batch} - {0})
    if len(wanted) * per_size > most_shapes:
        raise ConfigError(
            f"sizes, batch: {len(wanted)} sizes, and {per_size} numbers of images that run at once "
            f"(the bundle's most are {manifest.max_batch}); an engine keeps a network loaded for "
            f"{most_shapes} of these together. Warm up fewer, or use another engine."
        )
    # Chunks differ, as those of real prompts do: equal ones would run once.
    prompt = " BREAK ".join(str(number) for number in range(prompt_chunks))
    black = np.zeros((SIZE_MULTIPLE, SIZE_MULTIPLE, 3), np.uint8)
    known = manifest.architecture.controls
    steered = [
        {"network": name, "image": black, "control_type": _any_type(known.get(name))}
        for name in controls
    ]
    return [
        Request(
            prompt,
            width=width,
            height=height,
            steps=1,
            guidance_scale=2.0 if guidance else 1.0,
            sampler=_SAMPLER,
            schedule="normal",
            batch_size=batch,
            controls=steered,  # type: ignore[arg-type]  # which the request checks
            seamless=seamless,
        )
        for width, height in wanted
    ]


def _any_type(control: ControlArchitecture | None) -> str | None:
    return next(iter(CONTROL_TYPES)) if control is not None and control.control_types else None


def _distinct(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if not isinstance(sizes, (list, tuple)) or not sizes:
        raise ConfigError.for_field("sizes", sizes, "a list of (width, height), or None")
    return list(dict.fromkeys(Pair(1, MAX_SIDE)("sizes", size) for size in sizes))
