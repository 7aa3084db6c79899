"""The run time's straight line: request, conditioning, latents, trajectory, VAE, images."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends import select_backend
from sdengine.backends.base import PRECISIONS, Backend, Module
from sdengine.bundle.reader import Bundle, check_size, open_bundle
from sdengine.errors import ConfigError
from sdengine.images.result import Result, Step
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.decoding import decode, preview
from sdengine.pipeline.latents import noise_of
from sdengine.pipeline.loaded_networks import Networks
from sdengine.pipeline.trajectory import Trajectory
from sdengine.pipeline.turns import Turns
from sdengine.prompt.conditioning import Conditioning, TextConditioner
from sdengine.prompt.plan import PromptOptions, PromptPlan
from sdengine.request.request import Request, random_seed
from sdengine.samplers import (
    NoiseSchedule,
    SamplerOptions,
    SamplerProgram,
    build_program,
    resolve_names,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sdengine.request.options import RequestOptions


def load(
    bundle: str | os.PathLike[str] = "demo",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    low_memory: bool = False,
    memory_bytes: int | None = None,
) -> Engine:
    """Open a bundle and make an engine that runs it.

    Args:
        bundle: the folder that `sdengine.build` wrote, or "demo" for the one in the package.
        backend: "auto" for what the bundle was built for, or a backend's name.
        precision: what the networks compute in: "fp32", "bf16", or "auto" for the backend's choice;
            "int8" too on target native, "fp16" on a GPU; of engines, what they were built in.
        threads: CPU threads, or None for the runtime's choice.
        low_memory: free each network's memory once a request no longer needs it, and load it again
            for the next request.
        memory_bytes: the most that a bundle for a GPU may take of its memory, or one of target
            native of the machine's, whose convolutions then use smaller weights where they must;
            None for what is free. Image sizes that would take more are refused before anything
            runs.

    Returns:
        An engine; use it as a context manager or call its `close`.

    Raises:
        ConfigError: an argument is invalid.
        BundleError: the bundle is missing, foreign, incomplete or altered.
        BackendUnavailableError: the backend cannot run the bundle or not on this machine.
        OutOfMemoryError: no image size of the bundle fits into the memory; the message has the
            figures.
    """
    if precision not in PRECISIONS:
        raise ConfigError.for_field("precision", precision, ", ".join(PRECISIONS))
    valid_count = isinstance(threads, int) and not isinstance(threads, bool) and threads > 0
    if threads is not None and not (valid_count and threads <= 4096):
        raise ConfigError.for_field("threads", threads, "a whole number from 1 to 4096, or None")
    opened = open_bundle(bundle)
    if not isinstance(low_memory, bool):
        raise ConfigError.for_field("low_memory", low_memory, "True or False")
    chosen = select_backend(backend, opened.manifest.target)
    return Engine(opened, chosen, precision, threads, low_memory, memory_bytes)


@dataclass(frozen=True)
class _Plan:
    """A checked request with everything that the host can work out before any network runs."""

    request: Request
    program: SamplerProgram
    prompts: PromptPlan
    cancel: threading.Event | None
    preview_every: int
    is_watched: bool


class Engine:
    """Make images from prompts with one bundle. Safe to use from several threads.

    Networks load on first use for each image size; later requests reuse them. Requests of several
    threads are served in the order in which they came; trajectories of `steps` take turns with
    them step by step. A second engine runs beside this one.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        precision: str = "auto",
        threads: int | None = None,
        low_memory: bool = False,
        memory_bytes: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.session = backend.open(
            bundle,
            precision=precision,
            threads=threads,
            memory_bytes=memory_bytes,
            low_memory=low_memory,
        )
        self.precision = self.session.precision
        self.threads = threads
        self.low_memory = low_memory
        self._networks = Networks(bundle, self.session)
        self._conditioner = TextConditioner(bundle, self.session.max_chunks)
        noise_schedule = NoiseSchedule.from_config(bundle.manifest.architecture.scheduler)
        # A program is the same for every request of its sampler; nobody writes to one.
        make = functools.partial(build_program, noise_schedule=noise_schedule)
        self._program = functools.lru_cache(maxsize=32)(make)
        self._turns = Turns()
        self._executor: ThreadPoolExecutor | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for requests that have begun and free the networks; a second call does nothing."""
        with self._turns.take():
            self._networks.close()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        progress: Callable[[Step], None] | None = None,
        preview_every: int = 0,
        cancel: threading.Event | None = None,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Make images from a prompt.

        Args:
            prompt: what to show; one for all images, or one an image.
            negative_prompt: what to avoid, likewise.
            progress: called after every step; an exception that it raises ends the request.
            preview_every: give every n-th step of `progress` a small preview; 0 gives none.
            cancel: setting it, from any thread, ends the request within one step.
            options: fields of `Request`, such as width, steps, seed and batch_size. Those left out
                are the bundle's defaults; the seed is random, and the result records it.

        Returns:
            The images, their seeds, and where the time went.

        Raises:
            ConfigError: an argument is invalid.
            UnsupportedShapeError: the bundle was not built for the size.
            OutOfMemoryError: the size takes more memory than may be had.
            NonFiniteError: a network gave NaN or infinity.
            Cancelled: `cancel` was set.
        """
        is_watched = progress is not None
        plan = self._plan(prompt, negative_prompt, cancel, preview_every, is_watched, options)
        with self._turns.take(cancel):
            for step in self._run(plan):
                if progress is not None:
                    progress(step)
        assert step.result is not None
        return step.result

    def steps(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        preview_every: int = 0,
        cancel: threading.Event | None = None,
        **options: Unpack[RequestOptions],
    ) -> Iterator[Step]:
        """Make images step by step; arguments as for `generate`.

        The request is checked by this call; the work happens while iterating. Not iterating
        further ends the request.

        Returns:
            An iterator of steps; the last one's `result` holds the images.
        """
        plan = self._plan(prompt, negative_prompt, cancel, preview_every, True, options)
        return self._in_turns(plan)

    async def generate_async(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        progress: Callable[[Step], None] | None = None,
        preview_every: int = 0,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Make images while the event loop goes on; arguments as for `generate`.

        Calls are served in their order by a thread of the engine, which also calls `progress`.
        Cancelling the task ends the request within one step.
        """
        cancel = threading.Event()

        def work() -> Result:
            return self.generate(
                prompt,
                negative_prompt,
                progress=progress,
                preview_every=preview_every,
                cancel=cancel,
                **options,
            )

        future = asyncio.get_running_loop().run_in_executor(self._worker(), work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel.set()
            with contextlib.suppress(Exception):
                await future  # at most one step: the engine is free when the caller goes on
            raise

    def _worker(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="sdengine")
            return self._executor

    def _plan(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str],
        cancel: threading.Event | None,
        preview_every: int,
        is_watched: bool,
        options: RequestOptions,
    ) -> _Plan:
        if type(preview_every) is not int or preview_every < 0:
            raise ConfigError.for_field("preview_every", preview_every, "a whole number from 0")
        request = self._request(prompt, negative_prompt, options)
        check_size(request.width, request.height, self.bundle.manifest.resolutions)
        self.session.budget.check(request.width, request.height)
        program = self._program(
            request.sampler, request.schedule, request.steps, options=_sampler_options(request)
        )
        request = replace(request, sampler=program.sampler, schedule=program.schedule)
        prompts = self._prompt_plan(request)
        return _Plan(request, program, prompts, cancel, preview_every, is_watched)

    def _request(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str],
        options: RequestOptions,
    ) -> Request:
        defaults = self.bundle.manifest.defaults
        given = {name: value for name, value in options.items() if value is not None}
        values: dict[str, Any] = {
            "width": defaults.width,
            "height": defaults.height,
            "steps": defaults.steps,
            "guidance_scale": defaults.guidance_scale,
            "seed": random_seed(),
            **given,
        }
        values["sampler"], values["schedule"] = resolve_names(
            values.get("sampler", defaults.sampler),
            values.get("schedule", None if "sampler" in given else defaults.schedule),
        )
        if values.get("variation_strength") and "variation_seed" not in values:
            values["variation_seed"] = random_seed()
        return Request(prompt=prompt, negative_prompt=negative_prompt, **values)  # type: ignore[arg-type]

    def _prompt_plan(self, request: Request) -> PromptPlan:
        options = PromptOptions(emphasis=request.emphasis, clip_skip=request.clip_skip)
        distilled = self.bundle.manifest.architecture.unet.guidance_embed_dim is not None
        negatives = request.negative_prompts if request.uses_guidance and not distilled else ()
        plan = self._conditioner.plan(request.prompts, negatives, request.steps, options)
        if not negatives and plan.is_composed:  # joining prompts needs the unconditional rows
            negatives = request.negative_prompts
            plan = self._conditioner.plan(request.prompts, negatives, request.steps, options)
        return plan

    def _in_turns(self, plan: _Plan) -> Iterator[Step]:
        run = self._run(plan)
        while True:
            with self._turns.take(plan.cancel):
                step = next(run, None)
            if step is None:
                return
            yield step

    def _run(self, plan: _Plan) -> Iterator[Step]:
        request, program = plan.request, plan.program
        clock = StageClock()
        conditioning = self._condition(plan, clock)
        images: list[NDArray[np.uint8]] = []
        chunks = _chunks(request.batch_size, self.bundle.manifest.max_batch)
        total = len(chunks) * len(program.t)
        for number, chunk in enumerate(chunks):
            trajectory = Trajectory(
                request, program, plan.prompts, conditioning, chunk, plan.cancel
            )
            noise = noise_of(request, chunk, self.bundle.manifest.architecture)
            for evaluation in trajectory.run(
                self._networks, noise, clock, plan.preview_every, plan.is_watched
            ):
                k = evaluation.index
                done = number * len(program.t) + k + 1
                step = Step(
                    index=done - 1,
                    total=total,
                    timestep=float(program.t[k]),
                    sigma=float(program.sigma[k]),
                    latents=evaluation.latents,
                    preview=None
                    if evaluation.clean is None
                    else preview(evaluation.clean, self._networks, clock),
                )
                if done < total:
                    clock.pause()
                    yield step
                    clock.resume()
            if chunk is chunks[-1]:
                self._done_with("unet")
            images += decode(evaluation.latents, self._networks, clock)
        self._done_with("vae_decoder")
        yield replace(step, result=self._result(request, images, clock))

    def _condition(self, plan: _Plan, clock: StageClock) -> Conditioning:
        size = (plan.request.height, plan.request.width)

        def get_encoder(network: str, rows: int) -> Module:
            module = self._networks.get(network, rows, *size, clock=clock)
            return clock.timed("text_encoder", module)

        conditioning = self._conditioner.encode(plan.prompts, get_encoder)
        encoders = self.bundle.manifest.architecture.text_encoders
        self._done_with(*(encoder.network for encoder in encoders))
        return conditioning

    def _done_with(self, *networks: str) -> None:
        if self.low_memory:
            self._networks.release(*networks)

    def _result(
        self, request: Request, images: list[NDArray[np.uint8]], clock: StageClock
    ) -> Result:
        source = self.bundle.manifest.source
        return Result(
            arrays=tuple(images),
            seeds=request.seeds,
            request=request,
            timings=clock.timings(),
            model=source.name,
            model_hash=source.sha256,
            bundle_hash=self.bundle.sha256,
            backend=self.backend.name,
            precision=self.precision,
            threads=self.threads,
        )


def _sampler_options(request: Request) -> SamplerOptions:
    names = ("eta", "s_noise", "s_churn", "s_tmin", "s_tmax")
    values = {name: getattr(request, name) for name in names}
    return SamplerOptions(**{name: value for name, value in values.items() if value is not None})


def _chunks(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
