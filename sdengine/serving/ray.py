"""Ray Serve deployment: the HTTP app in front of engines that are replicas, on many machines.

`serve run sdengine.serving.ray:app bundles=demo` starts it; `ray_serve.yaml` beside this file is a
configuration for `serve deploy`. One replica of `Front` is the server of app.py with its queue; its
runs go to the replicas of `Engines`, of which Ray starts more while requests wait. A replica loads
bundles as requests name them, and Ray sends requests to those that have theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from sdengine.engine import Engine
from sdengine.errors import Cancelled, ConfigError, DeviceError
from sdengine.images.result import Result, Step
from sdengine.loading import load
from sdengine.request.request import Request
from sdengine.serving.app import create_app
from sdengine.serving.bundle_names import named_bundles
from sdengine.serving.catalogue import Catalogue
from sdengine.serving.limits import Limits
from sdengine.serving.service import Service
from sdengine.serving.tokens import Tokens, read_tokens

# Longer than any request: Ray's own 20 s would end a picture that a processor makes in 47.
_DRAIN_SECONDS = 600.0
_HEALTH_SECONDS = 30.0
_ATTEMPTS = 3
_log = logging.getLogger(__name__)


class Settings(BaseModel):
    """What `serve run sdengine.serving.ray:app KEY=VALUE` takes.

    Args:
        bundles: paths that every machine has, as `[NAME=]PATH`, with commas between them.
        precision, threads: of `sdengine.load`; threads are also the processors that Ray counts.
        min_replicas, max_replicas: engines, of which Ray starts more while requests wait.
        gpus: that an engine takes, a whole number or less than one.
        models_per_replica: bundles that an engine keeps open at once.
        tokens: a file; without one, the proxy must listen on 127.0.0.1 alone.
        loras, embeddings, hypernetworks, models: folders that every machine has.
        max_queue: requests that wait.
    """

    model_config = ConfigDict(extra="forbid")

    bundles: str = "demo"
    precision: str = "auto"
    threads: int = Field(default=1, ge=1, le=4096)
    min_replicas: int = Field(default=1, ge=0, le=1000)
    max_replicas: int = Field(default=4, ge=1, le=1000)
    gpus: float = Field(default=0, ge=0, le=1)
    models_per_replica: int = Field(default=1, ge=1, le=100)
    tokens: str = ""
    models: str = ""
    loras: str = ""
    embeddings: str = ""
    hypernetworks: str = ""
    max_queue: int = Field(default=64, ge=1, le=100_000)

    def folders(self) -> dict[str, str]:
        """Return the folders that were given, by the catalogue's kinds."""
        given = {
            "model": self.models,
            "lora": self.loras,
            "embedding": self.embeddings,
            "hypernetwork": self.hypernetworks,
        }
        return {kind: folder for kind, folder in given.items() if folder}

    def open(self, path: str) -> Engine:
        """Open a bundle; its networks load on first use."""
        return load(
            path,
            precision=self.precision,
            threads=None if self.gpus else self.threads,
            embeddings=self.embeddings or None,
            loras_folder=self.loras or None,
            hypernetworks_folder=self.hypernetworks or None,
        )


class OpenedEngine:
    """An engine that is closed when Ray drops it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __del__(self) -> None:
        self.engine.close()


class Replica:
    """The engines of the bundles that requests named last.

    Args:
        settings: of the app.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = named_bundles(settings.bundles.split(","))
        self._turn = asyncio.Lock()

    async def opened(self, name: str) -> OpenedEngine:
        """Return the engine of a bundle."""
        return OpenedEngine(await asyncio.to_thread(self._settings.open, self._paths[name]))

    async def run(self, name: str, request: Request, preview_every: int) -> AsyncIterator[Any]:
        """Serve a request: yield its steps, and last its result.

        Cancelling the call, or the caller's end, ends the request within one step.
        """
        loop, cancel = asyncio.get_running_loop(), threading.Event()
        told: asyncio.Queue[Any] = asyncio.Queue()

        def tell(step: Step) -> None:
            bare = Step(step.index, step.total, step.timestep, step.sigma, None, step.preview)
            loop.call_soon_threadsafe(told.put_nowait, bare)

        async with self._turn:
            engine = (await self.opened(name)).engine
            work = loop.run_in_executor(
                None,
                lambda: engine.run(
                    request, progress=tell, preview_every=preview_every, cancel=cancel
                ),
            )
            work.add_done_callback(lambda _: told.put_nowait(None))
            try:
                while (step := await told.get()) is not None:
                    yield step
                yield await work
            finally:
                cancel.set()
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await asyncio.shield(work)


@serve.deployment(
    num_replicas=1,  # it holds the queue
    max_ongoing_requests=10_000,
    graceful_shutdown_timeout_s=_DRAIN_SECONDS,
    health_check_timeout_s=_HEALTH_SECONDS,
    ray_actor_options={"num_cpus": 0.1},
)
@serve.ingress()
class Front:
    """The HTTP server of app.py, whose runs are those of `Engines`.

    Args:
        settings: of the app.
        engines: handle of `Engines`.
    """

    def __init__(self, settings: Settings, engines: DeploymentHandle) -> None:
        self._settings = settings
        self._engines = engines
        self._loop = asyncio.get_running_loop()

    def __serve_build_asgi_app__(self) -> Any:
        """Return the app; Ray calls it once."""
        settings = self._settings
        # Open for what needs no network: prompts, sizes, names. Nothing of their weights is read.
        opened = {
            name: settings.open(path)
            for name, path in named_bundles(settings.bundles.split(",")).items()
        }
        tokens = Tokens(read_tokens(settings.tokens) if settings.tokens else [])
        service = Service(
            opened,
            Catalogue(settings.folders()),
            Limits(max_queue=settings.max_queue, max_queue_of_token=settings.max_queue),
            tokens,
            run=self._run,
            workers=2 * settings.max_replicas,  # so that Ray sees that more could be used
        )
        hosts = None if len(tokens) else {"localhost", "127.0.0.1", "[::1]"}
        return create_app(service, hosts, _DRAIN_SECONDS)

    def _run(
        self,
        name: str,
        request: Request,
        progress: Callable[[Step], None],
        preview_every: int,
        cancel: threading.Event,
    ) -> Result:
        """Run a request on some replica; on another one where that dies: pictures are the same."""
        for attempt in range(_ATTEMPTS):
            work = asyncio.run_coroutine_threadsafe(
                self._stream(name, request, progress, preview_every, cancel), self._loop
            )
            try:
                return work.result()
            except RayActorError as error:
                _log.warning("a replica died at attempt %d: %s", attempt + 1, error)
        raise DeviceError(
            f"engines: {_ATTEMPTS} replicas died one after the other while they ran this request."
        )

    async def _stream(
        self,
        name: str,
        request: Request,
        progress: Callable[[Step], None],
        preview_every: int,
        cancel: threading.Event,
    ) -> Result:
        handle = self._engines.options(stream=True, multiplexed_model_id=name)
        steps = handle.run.remote(name, request, preview_every)
        ended = asyncio.create_task(_set(cancel))
        following = asyncio.ensure_future(steps.__anext__())
        try:
            while True:
                await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    raise Cancelled("the request was cancelled.")
                step = following.result()
                if isinstance(step, Result):
                    return step
                progress(step)
                following = asyncio.ensure_future(steps.__anext__())
        finally:
            ended.cancel()
            if not following.done():
                steps.cancel()
                await asyncio.wait({following}, timeout=_HEALTH_SECONDS)
                if following.done() and not following.cancelled():
                    following.exception()  # that it was cancelled, which is known


async def _set(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.02)


def engines_deployment(settings: Settings) -> Deployment:
    """Return the deployment of `Replica` that a configuration asks for."""

    class Engines(Replica):
        # Ray sends requests to replicas that have their bundle, and drops what is oldest.
        opened = serve.multiplexed(max_num_models_per_replica=settings.models_per_replica)(
            Replica.opened
        )

    return serve.deployment(
        Engines,
        name="Engines",
        max_ongoing_requests=2,  # the next one waits where it will run
        graceful_shutdown_timeout_s=_DRAIN_SECONDS,
        health_check_timeout_s=_HEALTH_SECONDS,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 5,
        },
        ray_actor_options={
            "num_cpus": 0 if settings.gpus else settings.threads,
            "num_gpus": settings.gpus,
        },
    )


def app(args: dict[str, Any]) -> Application:
    """Return the application that `serve run` starts; see `Settings`.

    Raises:
        ConfigError: an argument is unknown or not acceptable.
    """
    try:
        settings = Settings(**args)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigError.for_field(name, first["input"], first["msg"]) from None
    return Front.bind(settings, engines_deployment(settings).bind(settings))  # type: ignore[attr-defined]
