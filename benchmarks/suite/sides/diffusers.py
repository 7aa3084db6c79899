"""Diffusers' pipelines as sides, as they are and compiled by torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.seeded_controlnets import edges
from sdengine.benchmarks.suite import task_inputs
from sdengine.benchmarks.suite.setting import PROMPT, SEED, STRENGTH, Setting
from sdengine.benchmarks.suite.sides.side import Arrays, Place, Served
from sdengine.benchmarks.verification import TIMESTEP, seeded_inputs, seeded_tokens
from sdengine.bundle.tensors import TensorSpec

_PIPELINES = {
    "text": "Pipeline", "image": "Img2ImgPipeline", "inpaint": "InpaintPipeline",
    "control": "ControlNetPipeline",
}  # fmt: skip


class DiffusersSide:
    """A pipeline of diffusers; see `Side`."""

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        self.setting = setting
        self.precision = precision
        self.place = place
        self._pipeline: Any = None
        self._clock = _Clock(setting.device)

    def start(self) -> dict[str, float]:
        """Import, and load the whole pipeline."""
        started = time.perf_counter()
        import diffusers
        import torch

        imported = time.perf_counter()
        if self.setting.threads is not None:
            torch.set_num_threads(self.setting.threads)
        self._pipeline = self._load(diffusers, torch)
        loaded = time.perf_counter()
        seconds = {"import": imported - started, "load": loaded - imported}
        return {**seconds, **self._prepare()}

    def serve(self, steps: int) -> Served:
        """Serve the request, with a clock around each network."""
        clock, pipeline = self._clock, self._pipeline
        kept: dict[str, Any] = {}

        def at_end(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            kept["latents"] = values["latents"]
            return values

        with clock.around(self._timed()):
            started = time.perf_counter()
            images = pipeline(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=self.setting.guidance_scale,
                num_images_per_prompt=self.setting.batch_size,
                callback_on_step_end=at_end,
                output_type="np",
                **self._inputs(),
            ).images
            total_ms = (time.perf_counter() - started) * 1e3
        pixels = np.round(images * 255).astype(np.uint8)
        if self.setting.task == "inpaint":  # what is kept, which requests of ours give as it was
            side = self.setting.resolution
            kept_pixels = task_inputs.picture(side)
            pixels = np.where(task_inputs.mask(side)[..., None] > 0, pixels, kept_pixels)
        return Served(
            pixels,
            clock.stages(total_ms, self.setting.batch_size),
            clock.times["unet_step"][:],
            np.asarray(kept["latents"].float().cpu()),
        )

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        """Run each network once on seeded inputs; see `Side.networks`."""
        import torch

        pipeline, setting = self._pipeline, self.setting
        unet, is_xl = pipeline.unet, getattr(pipeline, "text_encoder_2", None) is not None
        prompts = 2 if setting.guidance_scale > 1 else 1
        rows = prompts * setting.batch_size
        cells = setting.resolution // pipeline.vae_scale_factor

        def seeded(name: str, *shape: int) -> Any:
            array = seeded_inputs((TensorSpec(name, shape, "float32"),))[name]
            return torch.from_numpy(array).to(unet.device, unet.dtype)

        encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if is_xl else [])]
        with torch.inference_mode():
            read = []
            for encoder in encoders:
                tokens = seeded_tokens(encoder.config.vocab_size, prompts)
                found = encoder(torch.from_numpy(tokens).to(unet.device), output_hidden_states=True)
                read.append(found.hidden_states[-2] if is_xl else found.last_hidden_state)
            own = torch.cat(read, dim=2)
            given = own if states is None else torch.from_numpy(states).to(own)
            added = {}
            if is_xl:
                width = pipeline.text_encoder_2.config.projection_dim
                added["added_cond_kwargs"] = {
                    "text_embeds": seeded("text_embeds", rows, width),
                    "time_ids": seeded("time_ids", rows, 6),
                }
            predicted = unet(
                seeded("sample", rows, unet.config.in_channels, cells, cells),
                torch.full((rows,), TIMESTEP, device=unet.device),
                given.repeat_interleave(setting.batch_size, dim=0),
                return_dict=False,
                **added,
            )[0]
            latents = seeded("latents", 1, pipeline.vae.config.latent_channels, cells, cells)
            decoded = pipeline.vae.decode(latents.to(pipeline.vae.dtype), return_dict=False)[0]
        outputs = {"text_encoder": own, "unet": predicted, "vae_decoder": decoded}
        return {name: value.float().cpu().numpy() for name, value in outputs.items()}

    def close(self) -> None:
        """Forget the pipeline."""
        self._pipeline = None

    def _load(self, diffusers: Any, torch: Any) -> Any:
        checkpoint = Path(str(self.place.checkpoint))
        is_xl = (checkpoint / "text_encoder_2").exists()
        name = ("StableDiffusionXL" if is_xl else "StableDiffusion") + _PIPELINES[self.setting.task]
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        given: dict[str, Any] = {} if is_xl else {"safety_checker": None}
        if self.setting.task == "control":
            folder = task_inputs.controlnet_folder(self.setting, Path(self.place.work).parent)
            given["controlnet"] = diffusers.ControlNetModel.from_pretrained(
                folder, dtype=dtype[self.precision]
            )
        pipeline = getattr(diffusers, name).from_pretrained(
            checkpoint, dtype=dtype[self.precision], **given
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        return pipeline.to(self.setting.device)

    def _prepare(self) -> dict[str, float]:
        """Do what no request can be served without; return seconds by part."""
        return {}

    def _inputs(self) -> dict[str, Any]:
        """Return the noise, and what the task gives, as the pipeline takes it."""
        import torch
        from PIL import Image

        from sdengine.samplers.noise import CudaGenerator

        side, batch, task = self.setting.resolution, self.setting.batch_size, self.setting.task
        size = {"height": side, "width": side}
        if task in ("image", "inpaint"):
            draws = [torch.Generator().manual_seed(SEED + i) for i in range(batch)]
            image = Image.fromarray(task_inputs.picture(side))
            found: dict[str, Any] = {"image": image, "strength": STRENGTH, "generator": draws}
            if task == "inpaint":
                found |= {**size, "mask_image": Image.fromarray(task_inputs.mask(side))}
            return found
        pipeline = self._pipeline
        cells, channels = side // pipeline.vae_scale_factor, pipeline.vae.config.latent_channels
        noise = np.concatenate(
            [CudaGenerator(SEED + i).randn((1, channels, cells, cells)) for i in range(batch)]
        )
        latents = torch.from_numpy(noise).to(self.setting.device, pipeline.unet.dtype)
        if task == "control":
            return {**size, "latents": latents, "image": Image.fromarray(edges(side))}
        return {**size, "latents": latents}

    def _timed(self) -> list[tuple[str, Any, str]]:
        """Return stage, object and method of each network."""
        pipeline = self._pipeline
        found = [
            ("unet_step", pipeline.unet, "forward"),
            ("vae_decoder", pipeline.vae, "decode"),
            ("vae_encoder", pipeline.vae, "encode"),
        ]
        for name in ("text_encoder", "text_encoder_2", "controlnet"):
            if getattr(pipeline, name, None) is not None:
                stage = "control" if name == "controlnet" else "text_encoder"
                found.append((stage, getattr(pipeline, name), "forward"))
        return found


class CompiledSide(DiffusersSide):
    """The same pipeline with its networks compiled by torch."""

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        """Give nothing: they would be compiled again for such calls. Pictures are compared."""
        return {}

    def _prepare(self) -> dict[str, float]:
        import torch

        started = time.perf_counter()
        pipeline = self._pipeline
        for stage, holder, method in self._timed():
            if stage != "text_encoder":
                setattr(holder, method, torch.compile(getattr(holder, method)))
        pipeline(
            PROMPT,
            num_inference_steps=self.setting.least_steps,
            guidance_scale=self.setting.guidance_scale,
            num_images_per_prompt=self.setting.batch_size,
            **self._inputs(),
        )
        return {"pack": time.perf_counter() - started}


class _Clock:
    """Count milliseconds of calls by stage."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.times: dict[str, list[float]] = {}

    @contextmanager
    def around(self, methods: list[tuple[str, Any, str]]) -> Iterator[None]:
        """Time methods of objects inside the block."""
        self.times = {stage: [] for stage, _, _ in methods}
        before = [(holder, name, getattr(holder, name)) for _, holder, name in methods]
        try:
            for (stage, holder, name), (_, _, plain) in zip(methods, before, strict=True):
                setattr(holder, name, self._timed(stage, plain))
            yield
        finally:
            for holder, name, plain in before:
                setattr(holder, name, plain)

    def stages(self, total_ms: float, batch_size: int) -> dict[str, float]:
        """Return the times of STAGES."""
        inside = sum(map(sum, self.times.values()))
        found = {
            "outside": (total_ms - inside) / batch_size,
            "end_to_end": total_ms / batch_size,
        }
        shares = {"text_encoder": 1, "vae_decoder": batch_size, "vae_encoder": batch_size}
        for stage, times in self.times.items():
            if times:  # a batch is decoded in one call
                found[stage] = sum(times) / shares.get(stage, len(times))
        return found

    def _timed(self, stage: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._wait()
            started = time.perf_counter()
            found = plain(*arguments, **options)
            self._wait()
            self.times[stage].append((time.perf_counter() - started) * 1e3)
            return found

        return call

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
