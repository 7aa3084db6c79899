"""Engine: one bundle opened, and requests served from several threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from sdengine.backends.base import DEFAULTS, Backend, SessionOptions
from sdengine.backends.forks import ForkSafeLock, watch_forks
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError
from sdengine.images.latents import Latents
from sdengine.images.provenance import Provenance, processor
from sdengine.images.result import Result, Step
from sdengine.inputs.embeddings import Embedding
from sdengine.inputs.hypernetworks import HypernetworkUse
from sdengine.inputs.loras import Lora, Strength
from sdengine.inputs.models import Given, ModelTerm
from sdengine.pipeline.codec import (
    decode_latents,
    encode_pixels,
    latents_size,
    own_pixels,
    padded_size,
)
from sdengine.pipeline.decoding import preview_method
from sdengine.pipeline.device_trajectory import Seen
from sdengine.pipeline.loaded_networks import Networks, WeightedNetworks
from sdengine.pipeline.pipeline import Pipeline, finish
from sdengine.pipeline.plan import Plan, Watch
from sdengine.pipeline.request_defaults import with_defaults
from sdengine.pipeline.turns import Turns
from sdengine.pipeline.warm_up import warm_up_requests
from sdengine.prompt.planner import usual_clip_skip
from sdengine.request.fields import as_arguments
from sdengine.request.keywords import given_fields
from sdengine.request.request import FIELDS, Request
from sdengine.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from sdengine.request.keywords import RequestOptions


class Engine:
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
        self.bundle = bundle
        self.backend = backend
        self.session = backend.open(bundle, options)
        self.precision = self.session.precision
        self.threads = options.threads
        self.low_memory = options.low_memory
        self._networks = Networks(bundle, self.session)
        source = bundle.manifest.source
        self.provenance = Provenance(
            backend=backend.name,
            precision=self.precision,
            threads=self.threads,
            version=__version__,
            processor=processor(),
            model=source.name,
            model_hash=source.sha256,
            bundle_hash=bundle.sha256,
            usual_clip_skip=usual_clip_skip(bundle.manifest.architecture),
            vae_in_bands=options.vae_tiles == "always",
        )
        self._pipeline = Pipeline(
            bundle, self._networks, self.provenance, self.low_memory, self.session.max_chunks
        )
        self._turns = Turns()
        self._executor: ThreadPoolExecutor | None = None
        self._starting = ForkSafeLock()
        watch_forks(self)

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
        """Wait for requests that have begun and free the networks; a second call does nothing.

        Called by `progress`, it returns at once, and the networks are freed after the request.
        """
        self._turns.at_end(self._networks.close)
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
            preview: how: "linear", the default, gives each latent cell its colour, for next to
                nothing; "tiny" decodes with the bundle's tiny decoder; "vae" decodes averaged
                latents with the VAE. None is "vae" with bundles of releases before this one.
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
        plan = self._plan(request)
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
        return self._in_turns(self._plan(prompt), watch)

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
        few_steps = self._pipeline.weights.few_steps(given["prompt"], loras)
        return with_defaults(given, self.bundle.manifest.defaults, few_steps)

    def warm_up(
        self,
        sizes: Sequence[tuple[int, int]] | None = None,
        *,
        batch: int = 1,
        prompt_chunks: int = 1,
        guidance: bool = True,
        controls: Sequence[str] = (),
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
        requests = warm_up_requests(manifest, sizes, batch, prompt_chunks, guidance, most, controls)
        plans = [self._plan(request) for request in requests]
        for number, plan in enumerate(plans):
            if progress is not None:
                progress(f"{plan.request.width}x{plan.request.height}", number, len(plans))
            with self._turns.take():
                finish(self._pipeline.run(plan, Watch(seen="nothing")))

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """The textual inversions that prompts may name, sorted by name."""
        return self._pipeline.library.resolve(None, self._pipeline.weights.embeddings())

    @property
    def skipped_embeddings(self) -> Mapping[str, str]:
        """Files of folders given to `add_embeddings` that are of no use, and why."""
        return {one.file: one.reason for one in self._pipeline.library.skipped}

    @property
    def lora_names(self) -> tuple[str, ...]:
        """The names of LoRAs that prompts may have in tags, sorted."""
        return self._pipeline.weights.names

    def add_loras(self, *loras: str | os.PathLike[str]) -> None:
        """Let prompts name LoRAs in tags, as web UIs do: `<lora:name:0.8>`.

        One number is the strength in all networks; two are that in the text encoders and that in
        the U-Net, and a third cuts it to a rank (its first rows, as the web UI does), also written
        `te=`, `unet=`, `dyn=`. A name is a file's without its ending, or what its trainer called
        it. A tag comes on top of what `loras` gives, in place of it for the same file. A request
        that names what is not there is told so by its result, and made without.

        Args:
            loras: files, or folders, which are searched with all folders in them.

        Raises:
            ConfigError: a path leads to neither.
        """
        self._pipeline.weights.add_files(*loras)

    def add_hypernetworks(self, *hypernetworks: str | os.PathLike[str]) -> None:
        """Let prompts name hypernetworks in tags, as web UIs do: `<hypernet:name:0.8>`.

        As for `add_loras`: a tag counts in place of a strength that is given beside it.

        Args:
            hypernetworks: files, or folders, which are searched with all folders in them.

        Raises:
            ConfigError: a path leads to neither.
        """
        self._pipeline.weights.add_hypernetworks(*hypernetworks)

    def knows(self, use: Lora | HypernetworkUse) -> bool:
        """Say whether a file of a recorded request can be had again by its hash."""
        return self._pipeline.weights.knows(use)

    @property
    def model(self) -> tuple[ModelTerm, ...]:
        """What takes the place of the bundle's weights for requests that give no `model`."""
        return self._pipeline.weights.model

    def add_embeddings(self, *embeddings: str | os.PathLike[str] | Embedding) -> None:
        """Let prompts name textual inversions; nothing is built or loaded again.

        A request that has `embeddings` itself sees those alone. A name that was there already means
        the new one from now on.

        Args:
            embeddings: paths of files, which prompts call by their names without the ending; paths
                of folders, which are read with all folders in them; or what `read_embeddings`
                returns, which can give a file another name. Files of folders that are damaged, for
                other models, or of a name that is taken are skipped, see `skipped_embeddings`; a
                prompt that names one gives a warning.

        Raises:
            ConfigError: a file cannot be read, or is not for this bundle's text encoders.
        """
        self._pipeline.library.add(*embeddings)

    @property
    def loras(self) -> tuple[Lora, ...]:
        """What is merged into the weights for requests that give no `loras`."""
        return self._pipeline.weights.loras

    @property
    def hypernetworks(self) -> tuple[HypernetworkUse, ...]:
        """What changes the U-Net's attention for requests that give no `hypernetworks`."""
        return self._pipeline.weights.hypernetworks

    def set_weights(
        self,
        *,
        model: Given | tuple[ModelTerm, ...] | None = None,
        loras: Mapping[str | os.PathLike[str], Strength] | tuple[Lora, ...] | None = None,
        hypernetworks: Mapping[str | os.PathLike[str], float]
        | tuple[HypernetworkUse, ...]
        | None = None,
    ) -> None:
        """Set what requests compute with that do not say it themselves; nothing is built again.

        What is not given is the bundle's own from now on, as if it had never been set. Requests
        that have begun, and those that `stream` goes on with, finish on the weights that they began
        with.

        Args:
            model: a checkpoint of the bundle's architecture, a file or a folder, whose weights take
                the place of the bundle's (U-Net, text encoders with their token tables, VAE; what
                it lacks stays); or several with their shares, which make 1: {a: 0.7, b: 0.3} is a
                weighted sum, {a: 1, b: 0.5, c: -0.5} adds half the difference between b and c, and
                "bundle" is the bundle itself. A bundle for inpainting or depth takes checkpoints
                for text too, and keeps its own channels for what they do not read.
            loras: files of LoRAs and their kin, or folders that PEFT or diffusers wrote, with a
                strength for each (0.8), or one for the text encoders and one for the U-Net
                ((0.5, 0.8)), from -100 to 100; or what `loras` was. They are merged into the
                weights of a bundle of target native, always anew into the bundle's own; their
                order changes nothing. Prompts may name textual inversions inside them.
            hypernetworks: files of hypernetworks as web UIs train them, with a strength for each,
                from -100 to 100, in the order in which they are applied; or what `hypernetworks`
                was. For a bundle of target native.

        Raises:
            ConfigError: an argument is invalid, or the bundle is of another target.
            CheckpointError: a model is damaged, or of another architecture or noise schedule.
            AdapterError: a LoRA or hypernetwork is damaged, of another model, or not all of it can
                be applied. The weights are as they were.
        """
        found = () if loras is None else FIELDS["loras"].checked(loras)
        terms = () if model is None else FIELDS["model"].checked(model)
        nets = () if hypernetworks is None else FIELDS["hypernetworks"].checked(hypernetworks)
        self._pipeline.weights.set_defaults(found, terms, nets)

    def encode(self, image: Any) -> Latents:
        """Return the mean latents of a picture, of any size that the bundle runs when padded.

        With `Latents.save` and `decode` the VAE is a codec of half a bit a pixel.

        Args:
            image: a path, a PIL image, an array or a file's bytes; transparent pixels show white.

        Raises:
            ConfigError: it is no picture, or the bundle has no encoder.
            UnsupportedShapeError, OutOfMemoryError, NonFiniteError: as for `run`.
        """
        pixels = own_pixels(image)
        networks, model_hash = self._vae()
        size = padded_size(pixels.shape[1], pixels.shape[0], networks)
        self.session.budget.check(*size)
        with self._turns.take():
            self._networks.require_own()
            return encode_pixels(pixels, size, networks, model_hash)

    def decode(self, latents: Latents) -> NDArray[np.uint8]:
        """Return the picture [h,w,3] uint8 of latents that `encode` made with the same model.

        Raises:
            ConfigError: another model's VAE made them.
            UnsupportedShapeError, OutOfMemoryError, NonFiniteError: as for `run`.
        """
        networks, model_hash = self._vae()
        size = latents_size(latents, networks, model_hash)
        self.session.budget.check(*size)
        with self._turns.take():
            self._networks.require_own()
            return decode_latents(latents, networks)

    def _vae(self) -> tuple[WeightedNetworks, str]:
        """Return the networks of requests that give no weights, and whose autoencoder they have."""
        weights = self._pipeline.weights.defaults()
        model_hash = weights.identity("vae_decoder") or self.provenance.model_hash
        return WeightedNetworks(self._networks, weights), model_hash

    def forget_prompts(self) -> None:
        """Have the text encoders run again for prompts of earlier requests, as for measurements.

        What a prompt became is otherwise kept for a while, and used by requests that have the same.
        """
        with self._turns.take():
            self._pipeline.forget_prompts()

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

    def _plan(self, request: Request) -> Plan:
        if not isinstance(request, Request):
            hint = "`generate` takes prompts."
            raise ConfigError.for_field("request", request, "a sdengine.Request", hint)
        self._networks.require_own()
        plan = self._pipeline.plan(request)
        for one in plan.passes:
            tile = None if one.unet_size == one.vae_size else one.unet_size
            self.session.budget.check(*one.vae_size, one.more_networks, tile)
        return plan

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
