"""Steps of trainings at full size: ours, and what the example scripts of diffusers do in one.

    python -m sdengine.benchmarks.training_steps ours lora MODEL DATA OUTPUT STEPS
    python -m sdengine.benchmarks.training_steps diffusers lora MODEL INPUTS

A step of the scripts encodes picture and caption, draws noise and a timestep, and takes the mean
squared error of what the U-Net predicts; here noise and timesteps are those that ours drew, so that
the losses must be equal. Prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdengine.checkpoints import load_checkpoint
from sdengine.request.preprocessors import preprocess
from sdengine.training.loop import Draw
from sdengine.training.tuning.buckets import place
from sdengine.training.tuning.options import OPTIONS
from sdengine.training.tuning.pictures import find_examples, read_pixels
from sdengine.training.tuning.tune import tune

WORD = "zorblax"
# As the scripts have it: attention layers, rank 4.
OPTIONS_OF: Mapping[str, Mapping[str, Any]] = MappingProxyType({
    "embedding": {"templates": ("a {name}",), "name": WORD},
    "lora": {"targets": "attention", "rank": 4},
    "controlnet": {"preprocessor": "canny"},
})  # fmt: skip
_RATE = 1e-4


def ours(kind: str, model: Path, data: Path, output: Path, count: int) -> dict[str, Any]:
    """Train for a few steps; return the first loss and the seconds of a step."""
    ends: list[float] = []
    losses: list[float] = []

    def report(step: int, steps: int, figures: dict[str, float]) -> None:
        ends.append(time.process_time())
        losses.append(figures["loss"])

    more = OPTIONS_OF.get(kind, {})
    options = OPTIONS[kind](
        steps=count, save_every=1000, buckets=False, device="cpu", learning_rate=_RATE, **more
    )
    tune(kind, model, data, output, options, report=report)
    return {"loss": losses[0], "step_seconds": round(float(np.diff(ends).min()), 1)}


def write_inputs(kind: str, model: Path, data: Path, count: int, path: Path) -> None:
    """Write what our steps read of a folder with one picture, for the other side to read."""
    checkpoint = load_checkpoint(model)
    cell = checkpoint.vae_config.downscale
    side = checkpoint.unet_config.sample_size * cell
    (example,) = find_examples(data)
    pixels = place(read_pixels("data", example.path)[0], (side, side)).pixels
    drawn: dict[str, list[Tensor]] = {"of_latents": [], "noise": [], "timestep": []}
    shape = (checkpoint.vae_config.latent_channels, side // cell, side // cell)
    for number in range(count):
        generator = Draw.at(0, number).torch
        drawn["of_latents"].append(torch.randn(shape, generator=generator))
        drawn["noise"].append(torch.randn((1, *shape), generator=generator))
        drawn["timestep"].append((torch.rand(1, generator=generator) * 1000).long())
    torch.save(
        {
            "caption": f"a {WORD}" if kind == "embedding" else example.caption,
            "pixels": torch.from_numpy(np.array(pixels)),
            "hint": torch.from_numpy(np.array(preprocess(pixels, "canny"))),
            **{name: torch.stack(values) for name, values in drawn.items()},
        },
        path,
    )


def theirs(kind: str, model: Path, inputs: Path) -> dict[str, Any]:
    """Take the steps of a script; return the first loss and the seconds of a step."""
    import diffusers
    import transformers

    given = torch.load(inputs, weights_only=True)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(model / "tokenizer")
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel.from_pretrained(model / "unet"),
        "vae": diffusers.AutoencoderKL.from_pretrained(model / "vae"),
        "text_encoder": transformers.CLIPTextModel.from_pretrained(model / "text_encoder"),
    }
    for part in parts.values():
        part.float().requires_grad_(False)
    scheduler = diffusers.DDPMScheduler.from_pretrained(model / "scheduler")
    trained, after = _PREPARED[kind](parts, tokenizer)
    params = [p for p in trained.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=_RATE)
    ids = tokenizer(given["caption"], padding="max_length", truncation=True, return_tensors="pt")
    pixels = given["pixels"].permute(2, 0, 1)[None].float() / 127.5 - 1
    hint = given["hint"].permute(2, 0, 1)[None].float() / 255
    losses, ends = [], []
    for of_latents, noise, timestep in zip(
        given["of_latents"], given["noise"], given["timestep"], strict=True
    ):
        with torch.no_grad():
            found = parts["vae"].encode(pixels).latent_dist
            latents = (found.mean + found.std * of_latents) * parts["vae"].config.scaling_factor
        x = scheduler.add_noise(latents, noise, timestep)
        context = parts["text_encoder"](ids.input_ids)[0]
        more = {}
        if kind == "controlnet":
            down, mid = trained(x, timestep, context, hint, return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        predicted = parts["unet"](x, timestep, context, return_dict=False, **more)[0]
        loss = nn.functional.mse_loss(predicted.float(), noise.float())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        after()
        losses.append(loss.item())
        ends.append(time.process_time())
    return {"loss": losses[0], "step_seconds": round(float(np.diff(ends).min()), 1)}


Prepared = tuple[nn.Module, Callable[[], None]]


def _embedding(parts: dict[str, Any], tokenizer: Any) -> Prepared:
    """Add a token, and train the table with all other rows restored after each step."""
    start = tokenizer.encode("*", add_special_tokens=False)[0]
    tokenizer.add_tokens(WORD)
    new = tokenizer.convert_tokens_to_ids(WORD)
    encoder = parts["text_encoder"]
    encoder.resize_token_embeddings(len(tokenizer))
    table = encoder.get_input_embeddings()
    table.weight.data[new] = table.weight.data[start]
    table.requires_grad_(True)
    before = table.weight.detach().clone()
    others = torch.arange(len(before)) != new

    def after() -> None:
        with torch.no_grad():
            table.weight[others] = before[others]

    return table, after


def _lora(parts: dict[str, Any], tokenizer: Any) -> Prepared:
    from peft import LoraConfig

    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    parts["unet"].add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    )
    return parts["unet"], _nothing


def _whole(parts: dict[str, Any], tokenizer: Any) -> Prepared:
    return parts["unet"].requires_grad_(True).train(), _nothing


def _controlnet(parts: dict[str, Any], tokenizer: Any) -> Prepared:
    import diffusers

    net = diffusers.ControlNetModel.from_unet(parts["unet"])
    return net.requires_grad_(True).train(), _nothing


def _nothing() -> None:
    """Do nothing after a step."""


_PREPARED: Mapping[str, Callable[[dict[str, Any], Any], Prepared]] = MappingProxyType({
    "embedding": _embedding,
    "lora": _lora,
    "dreambooth": _whole,
    "finetune": _whole,
    "controlnet": _controlnet,
})  # fmt: skip
KINDS = tuple(_PREPARED)


def main() -> None:
    """Run the command."""
    side, kind, *paths = sys.argv[1:]
    if side == "ours":
        model, data, output, count = paths
        found = ours(kind, Path(model), Path(data), Path(output), int(count))
    else:
        found = theirs(kind, *map(Path, paths))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
