"""Batches for Triton Inference Server: requests of several clients that are made together.

They are alike but for prompt, negative prompt and seed. On target native each picture is the same
to the byte as if it had been made alone; elsewhere it is as near as any batch's, whose products a
runtime may sum in another order.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from sdengine.engine import Engine
from sdengine.prompt.plan import PromptOptions
from sdengine.prompt.planner import PromptPlanner
from sdengine.request.request import Request


class Batcher:
    """Tell which requests may be made together.

    Args:
        engine: that makes them.
    """

    def __init__(self, engine: Engine) -> None:
        self._planner = PromptPlanner.from_bundle(engine.bundle, engine.session.max_chunks)

    def key(self, request: Request) -> Hashable:
        """Return what has to be equal for requests, each of one picture, to be made together.

        Raises:
            ConfigError: a prompt is not accepted.
        """
        plan = self._planner.plan(
            request.prompts,
            request.negative_prompts,
            request.num_steps_run,
            PromptOptions(emphasis=request.emphasis, clip_skip=request.clip_skip),
            is_guided=request.uses_guidance,
        )
        if plan.not_applied:  # tags, which count, and are told of, in a batch's first prompt
            return id(request)
        rest = replace(request, prompt="", negative_prompt="", seed=0)
        # A batch has as many chunks as its longest prompt, and as many parts joined by AND.
        parts = tuple(len(joined) for ((_, joined),) in plan.steps)
        return (rest.to_json(), plan.num_chunks, parts)


def joined(requests: Sequence[Request]) -> Request:
    """Return one request for the pictures of several that may be made together."""
    first = requests[0]
    if len(requests) == 1:
        return first
    return replace(
        first,
        prompt=tuple(one.prompts[0] for one in requests),
        negative_prompt=tuple(one.negative_prompts[0] for one in requests),
        seed=tuple(one.seeds[0] for one in requests),
        batch_size=len(requests),
    )
