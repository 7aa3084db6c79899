"""OpenVINO GenAI as a side: its own pipeline on models that are converted once."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.suite.setting import PROMPT, SEED, Setting
from sdengine.benchmarks.suite.sides.side import Arrays, Place, Served

_HINTS = {"bf16": "bf16", "fp32": "f32"}
_XML = "openvino_model.xml"


class OpenVinoGenAISide:
    """OpenVINO GenAI's Text2ImagePipeline; see `Side`."""

    def __init__(self, setting: Setting, precision: str, place: Place) -> None:
        self.setting = setting
        self.precision = precision
        self.place = place
        self._pipeline: Any = None

    def start(self) -> dict[str, float]:
        """Convert what was never converted, then import, read and compile."""
        folder = Path(self.place.work) / "model"
        if not (folder / "done").exists():
            _convert_apart(str(self.place.checkpoint), folder)
        started = time.perf_counter()
        import openvino_genai

        imported = time.perf_counter()
        pipeline = openvino_genai.Text2ImagePipeline(str(folder))
        side, batch = self.setting.resolution, self.setting.batch_size
        pipeline.reshape(batch, side, side, self.setting.guidance_scale)
        loaded = time.perf_counter()
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
        }
        if self.setting.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.setting.threads
        pipeline.compile("CPU", **options)
        self._pipeline = pipeline
        done = time.perf_counter()
        return {"import": imported - started, "load": loaded - imported, "pack": done - loaded}

    def serve(self, steps: int) -> Served:
        """Serve the request; the library tells the time of each network."""
        side = self.setting.resolution
        started = time.perf_counter()
        images = self._pipeline.generate(
            PROMPT, num_inference_steps=steps, guidance_scale=self.setting.guidance_scale,
            num_images_per_prompt=self.setting.batch_size, width=side, height=side,
            generator=_given_noise(),
        )  # fmt: skip
        total_ms = (time.perf_counter() - started) * 1e3
        told = self._pipeline.get_performance_metrics()
        batch = self.setting.batch_size
        inferences = [ms / 1e3 for ms in told.raw_metrics.unet_inference_durations]
        texts = told.get_text_encoder_infer_duration()
        text_ms = sum(texts.values())
        vae_ms = told.get_vae_decoder_infer_duration()
        outside = total_ms - sum(inferences) - text_ms - vae_ms
        return Served(
            np.array(images.data),
            {
                "text_encoder": text_ms,
                "unet_step": sum(inferences) / len(inferences),
                "vae_decoder": vae_ms / batch,
                "outside": outside / batch,
                "end_to_end": total_ms / batch,
            },
            inferences,
        )

    def networks(self, states: NDArray[np.float32] | None) -> Arrays:
        """Give nothing: it gives no access to them."""
        return {}

    def close(self) -> None:
        """Forget the pipeline."""
        self._pipeline = None


def _given_noise() -> Any:
    """Return a generator that draws what every side is given."""
    import openvino
    import openvino_genai

    from sdengine.samplers.noise import CudaGenerator

    class Given(openvino_genai.Generator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._images = 0

        def next(self) -> float:
            raise AssertionError("noise is drawn whole")

        def seed(self, value: int) -> None:
            """Keep our own."""

        def randn_tensor(self, shape: Any) -> Any:
            """Draw the noise of the next images, each by a seed of its own."""
            count, *rest = list(shape)
            rows = [CudaGenerator(SEED + self._images + i).randn((1, *rest)) for i in range(count)]
            self._images += count
            return openvino.Tensor(np.concatenate(rows))

    return Given()


def _convert_apart(checkpoint: str, folder: Path) -> None:
    """Convert in a process of its own, whose memory is not the side's."""
    import subprocess

    from sdengine.benchmarks.modules import module_command

    command = module_command("sdengine.benchmarks.suite.sides.genai", checkpoint, folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise RuntimeError(f"converting {checkpoint}: {last}")


def convert(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint in diffusers' layout as models of OpenVINO, as GenAI reads them.

    Args:
        checkpoint: of Stable Diffusion 1, 2 or XL.
        folder: is made.
    """
    import diffusers
    import openvino
    import openvino_tokenizers
    import torch
    import transformers

    index = json.loads((checkpoint / "model_index.json").read_text())
    names = [name for name in ("text_encoder", "text_encoder_2") if name in index]
    for part in ("scheduler", *(name.replace("text_encoder", "tokenizer") for name in names)):
        shutil.copytree(checkpoint / part, folder / part, dirs_exist_ok=True)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps({**settings, "_class_name": "EulerDiscreteScheduler"}))
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]

    def save(name: str, module: Any, example: dict[str, Any], config: dict[str, Any]) -> None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            model = openvino.convert_model(module.float().eval(), example_input=example)
        openvino.save_model(model, folder / name / _XML, compress_to_fp16=True)
        (folder / name / "config.json").write_text(json.dumps(config, default=str))

    for name in names:
        kind = "CLIPTextModelWithProjection" if name.endswith("_2") else "CLIPTextModel"
        encoder = getattr(transformers, kind).from_pretrained(checkpoint / name)
        save(name, _Text(encoder), {"input_ids": torch.zeros(1, 77, dtype=torch.int64)},
             encoder.config.to_dict())  # fmt: skip
        tokenizer = name.replace("text_encoder", "tokenizer")
        read = transformers.CLIPTokenizer.from_pretrained(checkpoint / tokenizer)
        openvino.save_model(
            openvino_tokenizers.convert_tokenizer(read, with_detokenizer=False),
            folder / tokenizer / "openvino_tokenizer.xml",
        )
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    side = unet.config.sample_size
    example = {
        "sample": torch.zeros(2, unet.config.in_channels, side, side),
        "timestep": torch.ones(1, dtype=torch.int64),
        "encoder_hidden_states": torch.zeros(2, 77, unet.config.cross_attention_dim),
    }
    if len(names) > 1:
        wide = unet.config.projection_class_embeddings_input_dim
        pooled = wide - 6 * unet.config.addition_time_embed_dim
        example |= {"text_embeds": torch.zeros(2, pooled), "time_ids": torch.zeros(2, 6)}
    save("unet", _Unet(unet, len(names) > 1), example, dict(unet.config))
    del unet
    vae = diffusers.AutoencoderKL.from_pretrained(checkpoint / "vae")
    cells = torch.zeros(1, vae.config.latent_channels, side, side)
    save("vae_decoder", _Decoder(vae), {"latent_sample": cells}, dict(vae.config))
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "done").touch()


def _wrapped() -> tuple[Any, Any, Any]:
    import torch

    class Text(torch.nn.Module):
        def __init__(self, encoder: Any) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any) -> Any:
            out = self.encoder(input_ids, output_hidden_states=True, return_dict=True)
            pooled = getattr(out, "text_embeds", None)
            first = {"text_embeds": pooled} if pooled is not None else {}
            states = {f"hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}
            plain = {} if first else {"pooler_output": out.pooler_output}
            return {**first, "last_hidden_state": out.last_hidden_state, **plain, **states}

    class Unet(torch.nn.Module):
        def __init__(self, unet: Any, has_added: bool) -> None:
            super().__init__()
            self.unet = unet
            self.has_added = has_added

        def forward(
            self, sample: Any, timestep: Any, encoder_hidden_states: Any,
            text_embeds: Any = None, time_ids: Any = None,
        ) -> Any:  # fmt: skip
            added = {"text_embeds": text_embeds, "time_ids": time_ids} if self.has_added else None
            out = self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added)
            return {"out_sample": out.sample}

    class Decoder(torch.nn.Module):
        def __init__(self, vae: Any) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, latent_sample: Any) -> Any:
            return {"sample": self.vae.decode(latent_sample).sample}

    return Text, Unet, Decoder


def _Text(encoder: Any) -> Any:
    return _wrapped()[0](encoder)


def _Unet(unet: Any, has_added: bool) -> Any:
    return _wrapped()[1](unet, has_added)


def _Decoder(vae: Any) -> Any:
    return _wrapped()[2](vae)


if __name__ == "__main__":
    import sys

    convert(Path(sys.argv[1]), Path(sys.argv[2]))
