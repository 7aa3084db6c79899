"""The run time's straight line: request, conditioning, latents, trajectory, VAE, images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends import select_backend
from sdengine.backends.base import PRECISIONS, Backend, Module, numpy_dtype, require_tensors
from sdengine.bundle.reader import Bundle, open_bundle
from sdengine.errors import BundleError, ConfigError, NonFiniteError, UnsupportedShapeError
from sdengine.networks import Networks, StageClock
from sdengine.noise import CpuGenerator
from sdengine.prompt.conditioning import Conditioning, TextConditioner
from sdengine.request import Request, random_seed
from sdengine.result import Result, Step
from sdengine.samplers import NoiseSchedule, SamplerProgram, build_program

_FP32_HINT = "Try precision fp32; if it stays, the checkpoint is damaged."


def load(
    bundle: str | os.PathLike[str] = "demo",
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Open a bundle and make an engine that runs it.

    Args:
        bundle: the folder that `sdengine.build` wrote, or "demo" for the one in the package.
        backend: "auto" for what the bundle was built for, or a backend's name.
        precision: what the networks compute in: "fp32", "bf16", or "auto" for the backend's choice.
        threads: CPU threads, or None for the runtime's choice.

    Returns:
        An engine; use it as a context manager or call its `close`.

    Raises:
        ConfigError: an argument is invalid.
        BundleError: the bundle is missing, foreign, incomplete or altered.
        BackendUnavailableError: the backend cannot run the bundle or not on this machine.
    """
    if precision not in PRECISIONS:
        raise ConfigError.for_field("precision", precision, ", ".join(PRECISIONS))
    valid_count = isinstance(threads, int) and not isinstance(threads, bool) and threads > 0
    if threads is not None and not (valid_count and threads <= 4096):
        raise ConfigError.for_field("threads", threads, "a whole number from 1 to 4096, or None")
    opened = open_bundle(bundle)
    return Engine(opened, select_backend(backend, opened.manifest.target), precision, threads)


class Engine:
    """Make images from prompts with one bundle. Safe to use from several threads.

    Networks load on first use for each image size; later requests reuse them. Requests that run
    at the same time take turns network call by network call.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.bundle = bundle
        self.backend = backend
        self.precision = backend.resolve(precision)
        self._networks = Networks(bundle, backend, self.precision, threads)
        self._conditioner = TextConditioner(bundle)
        self._noise_schedule = NoiseSchedule.from_config(bundle.manifest.architecture.scheduler)

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
        """Free the networks; a second call does nothing."""
        self._networks.close()

    def generate(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        seed: int | None = None,
        batch_size: int = 1,
        progress: Callable[[Step], None] | None = None,
    ) -> Result:
        """Make images from a prompt.

        Args:
            prompt: what to show.
            negative_prompt: what to avoid.
            width, height: pixels; one of the sizes that the bundle was built for.
            steps: sampler steps, 1 to 1000.
            guidance_scale: 0 to 100; at 1 and below, the prompt is followed without guidance.
            sampler, schedule: names as `sdengine samplers` lists them.
            seed: 0 to 2**64 - 1, or None for a random one, which the result records.
            batch_size: number of images; image i uses seed + i.
            progress: called after every step; an exception that it raises ends the request.

        Every argument left out takes the bundle's default.

        Returns:
            The images, their seeds, and where the time went.

        Raises:
            ConfigError: an argument is invalid.
            UnsupportedShapeError: the bundle was not built for the size.
            NonFiniteError: a network gave NaN or infinity.
        """
        for step in self.steps(
            prompt,
            negative_prompt,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            schedule=schedule,
            seed=seed,
            batch_size=batch_size,
        ):
            if progress is not None:
                progress(step)
        assert step.result is not None  # the last step carries it, and there is at least one
        return step.result

    def steps(self, prompt: str, negative_prompt: str = "", **options: Any) -> Iterator[Step]:
        """Make images step by step; takes what `generate` takes, except `progress`.

        The request is checked by this call; the work happens while iterating.

        Returns:
            An iterator of steps; the last one's `result` holds the images.
        """
        request, program, token_ids = self._plan(prompt, negative_prompt, **options)
        return self._run(request, program, token_ids)

    def _plan(
        self,
        prompt: str,
        negative_prompt: str,
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        seed: int | None = None,
        batch_size: int = 1,
    ) -> tuple[Request, SamplerProgram, NDArray[np.int64]]:
        defaults = self.bundle.manifest.defaults
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=defaults.width if width is None else width,
            height=defaults.height if height is None else height,
            steps=defaults.steps if steps is None else steps,
            guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
            sampler=defaults.sampler if sampler is None else sampler,
            schedule=defaults.schedule if schedule is None else schedule,
            seed=random_seed() if seed is None else seed,
            batch_size=batch_size,
        )
        _check_size(request, self.bundle.manifest.resolutions)
        program = build_program(
            request.sampler, request.schedule, request.steps, self._noise_schedule
        )
        request = replace(request, sampler=program.sampler, schedule=program.schedule)
        prompts = [("prompt", request.prompt)]
        if request.uses_guidance:  # unconditional rows come first
            prompts.insert(0, ("negative_prompt", request.negative_prompt))
        return request, program, self._conditioner.token_ids(prompts)

    def _run(
        self, request: Request, program: SamplerProgram, token_ids: NDArray[np.int64]
    ) -> Iterator[Step]:
        clock = StageClock()
        conditioning = self._condition(request, token_ids, clock)
        max_batch = self.bundle.manifest.max_batch
        chunks = [
            request.seeds[first : first + max_batch]
            for first in range(0, request.batch_size, max_batch)
        ]
        total = len(chunks) * len(program.t)
        done = 0
        images: list[NDArray[np.uint8]] = []
        for seeds in chunks:
            latents = np.empty(0, dtype=np.float32)
            for k, latents in self._trajectory(request, program, conditioning, seeds, clock):
                done += 1
                step = Step(done - 1, total, float(program.t[k]), float(program.sigma[k]), latents)
                if done < total:
                    clock.pause()
                    yield step
                    clock.resume()
            images += self._decode(request, latents, clock)
        yield replace(step, result=self._result(request, images, clock))

    def _condition(
        self, request: Request, token_ids: NDArray[np.int64], clock: StageClock
    ) -> Conditioning:
        rows = len(token_ids)
        size = (request.height, request.width)
        text_encoder = self._networks.get("text_encoder", rows, *size, clock)
        with self._networks.lock, clock.stage("text_encoder"):
            return self._conditioner.encode(token_ids, text_encoder)

    def _trajectory(
        self,
        request: Request,
        program: SamplerProgram,
        conditioning: Conditioning,
        seeds: tuple[int, ...],
        clock: StageClock,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each evaluation's index and the latents after it; they share one buffer."""
        rows = len(seeds) * (2 if request.uses_guidance else 1)
        unet = self._networks.get("unet", rows, request.height, request.width, clock)
        inputs = _unet_inputs(unet, conditioning, self._latents_shape(rows, request))
        sample, timestep = inputs["sample"], inputs["timestep"]

        generators = [CpuGenerator(seed) for seed in seeds]
        shape = (len(seeds), *sample.shape[1:])
        noise = np.empty(shape, dtype=np.float32)
        registers = np.zeros((program.b.shape[1], *shape), dtype=np.float32)
        _draw(generators, noise)
        np.multiply(noise, np.float32(program.init_scale), out=registers[0])
        latents = registers[0].view()
        latents.flags.writeable = False
        needs_noise = program.needs_noise

        for k in range(len(program.t)):
            _native.scale_duplicate(registers[0], float(program.c_in[k]), sample)
            timestep.fill(program.t[k])
            if needs_noise[k]:
                _draw(generators, noise)
            with self._networks.lock:
                with clock.stage("unet"):
                    noise_pred = unet.run(inputs)["noise_pred"]
                finite = _native.guided_step(
                    registers,
                    noise_pred,
                    request.guidance_scale,
                    program.A[k],
                    program.b[k],
                    program.d[k],
                    noise if needs_noise[k] else None,
                )
            if not finite:
                raise NonFiniteError(
                    f"unet: step {k + 1} of {len(program.t)} gave NaN or infinity. {_FP32_HINT}"
                )
            yield k, latents

    def _decode(
        self, request: Request, latents: NDArray[np.float32], clock: StageClock
    ) -> list[NDArray[np.uint8]]:
        vae = self._networks.get("vae_decoder", 1, request.height, request.width, clock)
        latents_shape = self._latents_shape(1, request)
        images_shape = (1, 3, request.height, request.width)
        require_tensors("vae_decoder", vae.inputs, {"latents": latents_shape}, "float32")
        require_tensors("vae_decoder", vae.outputs, {"images": images_shape}, "float32")
        scale = 1.0 / self.bundle.manifest.architecture.vae.scaling_factor
        one = np.empty(latents_shape, dtype=np.float32)
        images = []
        for index in range(len(latents)):
            _native.scale_duplicate(latents[index : index + 1], scale, one)
            with self._networks.lock:
                with clock.stage("vae_decoder"):
                    decoded = vae.run({"latents": one})["images"]
                try:
                    images.append(_native.images_to_uint8(decoded)[0])
                except NonFiniteError:
                    raise NonFiniteError(
                        f"vae_decoder: gave NaN or infinity. {_FP32_HINT}"
                    ) from None
        return images

    def _latents_shape(self, rows: int, request: Request) -> tuple[int, int, int, int]:
        vae = self.bundle.manifest.architecture.vae
        height, width = request.height // vae.downscale, request.width // vae.downscale
        return rows, vae.latent_channels, height, width

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
            backend=self.backend.name,
            precision=self.precision,
        )


def _check_size(request: Request, resolutions: list[tuple[int, int]]) -> None:
    width, height = request.width, request.height
    if (width, height) in resolutions:
        return
    nearest = min(resolutions, key=lambda size: abs(size[0] - width) + abs(size[1] - height))
    built = ", ".join(f"{w}x{h}" for w, h in resolutions[:20])
    raise UnsupportedShapeError(
        f"width, height: the bundle was not built for {width}x{height}; the nearest that it was "
        f"built for is {nearest[0]}x{nearest[1]} (all: {built}). Other sizes need "
        "`sdengine build --resolutions`."
    )


def _unet_inputs(
    unet: Module, conditioning: Conditioning, latents_shape: tuple[int, int, int, int]
) -> dict[str, NDArray[Any]]:
    """Make the U-Net's input buffers; ControlNet residuals stay zero."""
    rows = latents_shape[0]
    prompts, length, width = conditioning.prompt_embeds.shape
    embeds_shape = (rows, length, width)
    require_tensors("unet", unet.inputs, {"sample": latents_shape}, "float32")
    require_tensors("unet", unet.outputs, {"noise_pred": latents_shape}, "float32")
    wanted = {"timestep": (rows,), "encoder_hidden_states": embeds_shape}
    require_tensors("unet", unet.inputs, wanted)

    inputs: dict[str, NDArray[Any]] = {}
    for spec in unet.inputs:
        dtype = numpy_dtype(spec.dtype)
        if spec.name == "encoder_hidden_states":
            embeds = np.repeat(conditioning.prompt_embeds, rows // prompts, axis=0)
            inputs[spec.name] = embeds.astype(dtype, copy=False)
        elif spec.name in ("sample", "timestep") or "_residual" in spec.name:
            inputs[spec.name] = np.zeros([int(size) for size in spec.shape], dtype=dtype)
        else:
            raise BundleError(f"unet: input {spec.name!r} is unknown to this release.")
    return inputs


def _draw(generators: list[CpuGenerator], noise: NDArray[np.float32]) -> None:
    # Each image draws from a generator of its own, so a batch equals its images made alone.
    for image, generator in zip(noise, generators, strict=True):
        image[...] = generator.randn((1, *image.shape))[0]
