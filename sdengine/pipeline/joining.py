"""Joining: requests that are alike but for texts and seeds, run as one and parted again.

On target native each gets the pictures that it would have got alone, to the byte; elsewhere they
are as near as those of any batch, whose products a library may sum in another order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from sdengine.errors import ConfigError
from sdengine.images.result import Result
from sdengine.pipeline.plan import Plan
from sdengine.request.request import Request


def join_key(request: Request, plan: Plan) -> Hashable | None:
    """Return what requests have in common that may be joined; None of one that runs alone.

    Controls, IP-Adapters, regions and second passes are not joined, because they gain least by it,
    nor are prompts with tags, which count for a whole batch.

    Args:
        request: as it was asked.
        plan: of it.
    """
    plain = (
        request.hires is None
        and request.encode != "sample"  # which draws noise
        and not (request.controls or request.ip_adapters or request.regions)
        and request.variation_strength == 0
        and not any("<" in text for text in (*request.prompts, *request.negative_prompts))
        and len(plan.chunks) == 1
    )
    if not plain:
        return None
    common = replace(
        request, prompt="", negative_prompt="", seed=0, variation_seed=None, batch_size=1
    )
    # A batch has as many chunks as its longest prompt, and as many parts joined by AND.
    parts = [{len(own) for _, own in rows} for rows in plan.prompts.steps]
    if any(len(counts) > 1 for counts in parts):
        return None
    return common, plan.prompts.num_chunks, tuple(min(counts) for counts in parts)


def joined(requests: Sequence[Request]) -> Request:
    """Return the request for the images of several of one `join_key`, in their order.

    Raises:
        ConfigError: there is none.
    """
    if not requests:
        raise ConfigError.for_field("requests", requests, "at least one")
    if len(requests) == 1:
        return requests[0]
    return replace(
        requests[0],
        prompt=tuple(text for one in requests for text in one.prompts),
        negative_prompt=tuple(text for one in requests for text in one.negative_prompts),
        seed=tuple(seed for one in requests for seed in one.seeds),
        variation_seed=None,
        batch_size=sum(one.batch_size for one in requests),
    )


def parted(result: Result, requests: Sequence[Request]) -> list[Result]:
    """Return the result of each of the requests that were joined; they share timings and notes."""
    if len(requests) == 1:
        return [result]
    found, first = [], 0
    for one in requests:
        images = slice(first, first + one.batch_size)
        first += one.batch_size
        named = result.embeddings[images]
        own = replace(
            result.request,
            prompt=one.prompt,
            negative_prompt=one.negative_prompt,
            seed=one.seed,
            variation_seed=one.variation_seed,
            batch_size=one.batch_size,
        )
        if result.request.embeddings is not None and named:
            own = replace(own, embeddings=tuple(dict.fromkeys(e for each in named for e in each)))
        found.append(
            replace(result, arrays=result.arrays[images], request=own, embeddings=named, _images=[])
        )
    return found
