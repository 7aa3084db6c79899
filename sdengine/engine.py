"""Engine: one bundle opened, and requests served from several threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, overload

from sdengine.backends.base import DEFAULTS, Backend, SessionOptions
from sdengine.backends.forks import ForkSafeLock, watch_forks
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError
from sdengine.images.result import Result, Step
from sdengine.opened_bundle import OpenedBundle
from sdengine.pipeline.device_trajectory import Seen
from sdengine.pipeline.pipeline import finish
from sdengine.pipeline.plan import Plan, Watch
from sdengine.pipeline.previews import preview_method
from sdengine.pipeline.request_defaults import with_defaults
from sdengine.pipeline.warm_up import warm_up_requests
from sdengine.request.fields import as_arguments
from sdengine.request.keywords import given_fields
from sdengine.request.request import FIELDS, Request

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sdengine.request.keywords import RequestOptions


class Engine(OpenedBundle):
    """Make images from prompts with one bundle. Safe to use from several threads.

    Networks load on first use for each image size, or in `warm_up`; later requests reuse them.
    Requests of several threads are served in the order in which they came; trajectories of `stream`
    take turns with them step by step. A second engine runs beside this one.

    `progress` may call every method: a request that it makes is served before its own goes on, and
    `close` takes effect at the end of its request. It must not wait for another thread's request.
    In a child process of fork the engine works on if its bundle is of target native; others belong
    to the process that loaded them, and say so.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, options: SessionOptions = DEFAULTS
    ) -> None:
        super().__init__(bundle, backend, options)
        self._executor: ThreadPoolExecutor | None = None
        self._starting = ForkSafeLock()
        watch_forks(self)

    def __enter__(self) -> Engine:
        return self

    def close(self) -> None:
        """Wait for requests that have begun and free the networks; a second call does nothing.

        Called by `progress`, it returns at once, and the networks are freed after the request.
        """
        super().close()
        with self._starting:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def after_fork(self) -> None:
        """Forget the thread of `generate_async`, which a child process does not have."""
        self._executor = None

    def run(
        self,
        request: Request,
        *,
        progress: Callable[[Step], None] | None = None,
        preview_every: int = 0,
        preview: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Serve a request.

        Args:
            request: made by `request`, by `Request` or `Request.from_json`, or that of a result,
                which gives the same images again.
            progress: called after every step; an exception that it raises ends the request. A GPU
                that runs the steps itself does not wait for it.
            preview_every: give every n-th step of `progress` a preview; 0 gives none.
            preview: how: "linear" gives each latent cell its colour, for next to nothing; "tiny"
                decodes with the bundle's tiny decoder; "vae" decodes averaged latents with the VAE.
                None is "linear" where its colours were right when the bundle was built, else "vae".
            cancel: setting it, from any thread, ends the request within one step.

        Returns:
            The images, their seeds, and where the time went.

        Raises:
            ConfigError: an argument is invalid; nothing has run.
            UnsupportedShapeError: the bundle does not run the size.
            OutOfMemoryError: the size takes more memory than may be had.
            NonFiniteError: a network gave NaN or infinity.
            Cancelled: `cancel` was set.
            DeviceError: the engine was closed, or belongs to the parent process.
        """
        seen: Seen = "nothing" if progress is None else "steps"
        watch = self._watch(cancel, preview_every, preview, seen)
        plan = self.plan(request)
        with self._turns.take(cancel):
            return finish(self._pipeline.run(plan, watch), progress)

    def generate(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        progress: Callable[[Step], None] | None = None,
        preview_every: int = 0,
        preview: str | None = None,
        cancel: threading.Event | None = None,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Make images from a prompt: `run` of the `request` that the arguments make.

        Args:
            progress, preview_every, preview, cancel: as for `run`.
            {fields}
            num_inference_steps: diffusers' name of steps.
            num_images_per_prompt: images of each prompt, in place of batch_size: for prompts a, b
                and 2 the images are a, a, b, b. Image i of them all uses seed + i; a list of seeds
                has one an image.
            web_ui_clip_skip (1 to 12): clip_skip as web UIs count it, from the last layer of the
                text encoder whichever the checkpoint reads.

        An option that is left out or None is the bundle's default; the seed is random then, as it
        is with -1, and the result's request records all of them.

        Returns:
            The images, their seeds, and where the time went.

        Raises:
            ConfigError: an argument is invalid; nothing has run.
            UnsupportedShapeError, OutOfMemoryError, NonFiniteError, Cancelled: as for `run`.
        """
        request = self.request(prompt, negative_prompt, **options)
        return self.run(
            request,
            progress=progress,
            preview_every=preview_every,
            preview=preview,
            cancel=cancel,
        )

    generate.__doc__ = str(generate.__doc__).format(fields=as_arguments(FIELDS.values(), 12))

    async def generate_async(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        progress: Callable[[Step], None] | None = None,
        preview_every: int = 0,
        preview: str | None = None,
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
                preview=preview,
                cancel=cancel,
                **options,
            )

        if self._turns.is_own:  # `progress` runs a loop of its own: nobody else could serve it
            return work()
        # Shielded, because a cancelled future would not wait for its thread: the request itself is
        # told to end, and has ended when the task has. See test_engine_requests.py,
        # test_async_requests_and_their_cancellation.
        future = asyncio.get_running_loop().run_in_executor(self._worker(), work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            cancel.set()
            with contextlib.suppress(Exception):
                await future  # at most one step: the engine is free when the caller goes on
            raise

    @overload
    def stream(
        self,
        prompt: Request,
        *,
        preview_every: int = 0,
        preview: str | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Step]: ...

    @overload
    def stream(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        preview_every: int = 0,
        preview: str | None = None,
        cancel: threading.Event | None = None,
        **options: Unpack[RequestOptions],
    ) -> Iterator[Step]: ...

    def stream(
        self,
        prompt: Request | str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        preview_every: int = 0,
        preview: str | None = None,
        cancel: threading.Event | None = None,
        **options: Unpack[RequestOptions],
    ) -> Iterator[Step]:
        """Make images step by step; arguments as for `run`, or as for `generate`.

        The request is checked by this call; the work happens while iterating. Not iterating
        further ends the request.

        Returns:
            An iterator of steps; the last one's `result` holds the images.
        """
        watch = self._watch(cancel, preview_every, preview)
        if not isinstance(prompt, Request):
            prompt = self.request(prompt, negative_prompt, **options)
        elif negative_prompt or options:
            raise ConfigError("prompt: a Request has all fields itself; give no others with it.")
        return self._in_turns(self.plan(prompt), watch)

    def request(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        **options: Unpack[RequestOptions],
    ) -> Request:
        """Return the request that `generate` would run, with every default filled in.

        Args:
            prompt, negative_prompt, options: as for `generate`.

        Raises:
            ConfigError: an argument is invalid.
        """
        usual = self.provenance.usual_clip_skip
        given = given_fields(prompt, negative_prompt, options, usual)
        loras = given.get("loras")
        if loras is not None:
            given["loras"] = loras = FIELDS["loras"].checked(loras)
        few_steps = self._planner.weights.few_steps(given["prompt"], loras)
        return with_defaults(given, self.bundle.manifest.defaults, few_steps)

    def plan(self, request: Request) -> Plan:
        """Return what `run` works out before any network runs.

        Its `request` has what prompts name (LoRAs, embeddings) with their hashes: it says all that
        the pictures depend on beside the bundle and its precision.

        Raises:
            ConfigError, UnsupportedShapeError, OutOfMemoryError, DeviceError: as for `run`.
            AdapterError, CheckpointError: a file that the request names is of no use.
        """
        if not isinstance(request, Request):
            hint = "`generate` takes prompts."
            raise ConfigError.for_field("request", request, "a sdengine.Request", hint)
        self._networks.require_own()
        plan = self._planner.plan(request)
        for one in plan.passes:
            tile = None if one.unet_size == one.vae_size else one.unet_size
            self.session.budget.check(*one.vae_size, one.more_networks, tile)
        return plan

    def warm_up(
        self,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        batch: int = 1,
        prompt_chunks: int = 1,
        guidance: bool = True,
        controls: Sequence[str] = (),
        seamless: str = "none",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Load, pack and capture ahead of the first request, so that its `load_ms` is 0.

        A product that must answer at once calls this before it takes requests. It serves a request
        of one step of each kind and throws the images away; all else of a request (its sampler,
        steps and prompts) makes no difference to what is loaded. Previews, pictures to start from,
        prompts joined by AND, and a batch whose only text is that of all its images load more on
        first use.

        Args:
            sizes: (width, height) of images, of both passes where there are two; None is the
                bundle's default size.
            batch: images of a request; as many as go through the U-Net together are loaded for,
                and the rest that is left over.
            prompt_chunks: chunks of 75 tokens that a request's longest prompt fills; requests of
                another number load the U-Net again.
            guidance: requests have a guidance_scale of more than 1; for a guidance_interval, warm
                up once with guidance and once without.
            controls: names of the controls that requests are steered by, together; modes that steer
                the conditional half alone load more on first use.
            seamless: as in `Request`; networks whose edges meet are others than those whose do not.
            progress: called before each request with its size, its number and their count.

        Raises:
            ConfigError: an argument is invalid, there are more kinds than an engine keeps, or the
                engine is of low_memory and keeps none.
            UnsupportedShapeError, OutOfMemoryError, NonFiniteError: as for `run`.
        """
        if self.low_memory:
            raise ConfigError(
                "low_memory: the engine frees each network after its use, so that nothing can be "
                "loaded ahead. Load the bundle without low_memory."
            )
        most = self.session.budget.most_shapes
        manifest = self.bundle.manifest
        requests = warm_up_requests(
            manifest, sizes, batch, prompt_chunks, guidance, most, controls, seamless
        )
        plans = [self.plan(request) for request in requests]
        for number, plan in enumerate(plans):
            if progress is not None:
                progress(f"{plan.request.width}x{plan.request.height}", number, len(plans))
            with self._turns.take():
                finish(self._pipeline.run(plan, Watch(seen="nothing")))

    def _watch(
        self,
        cancel: threading.Event | None,
        preview_every: int,
        preview: str | None,
        seen: Seen = "latents",
    ) -> Watch:
        if preview is not None and preview_every == 0:
            raise ConfigError.for_field(
                "preview", preview, "nothing without preview_every", "Give preview_every too."
            )
        method = preview_method(self.bundle.manifest, preview)
        return Watch(cancel, preview_every, method, seen)

    def _in_turns(self, plan: Plan, watch: Watch) -> Iterator[Step]:
        run = self._pipeline.run(plan, watch)
        while True:
            with self._turns.take(watch.cancel):
                self._networks.require_own()
                step = next(run, None)
            if step is None:
                return
            yield step

    def _worker(self) -> ThreadPoolExecutor:
        with self._starting:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="sdengine")
            return self._executor
