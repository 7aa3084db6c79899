"""Steps of trainings at full size: ours, those of diffusers' example scripts, and a check of both.

    python -m sdengine.benchmarks.training_steps ours lora MODEL DATA OUTPUT STEPS
    python -m sdengine.benchmarks.training_steps script lora MODEL DATA OUTPUT STEPS EXAMPLES
    python -m sdengine.benchmarks.training_steps check lora MODEL INPUTS

EXAMPLES is the folder `examples` of a checkout of diffusers, whose scripts run as they stand; they
need accelerate, datasets, peft, tensorboard, torchvision and transformers. They draw noise of their
own, so a check writes a script's step down again with what ours drew: encode picture and caption,
add noise at a timestep, take the mean squared error of what the U-Net predicts. The losses must be
equal. Each prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch import nn

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
_START = "*"  # that a new word begins as
# A kind's script among diffusers' examples, and what it is told besides what all are.
SCRIPTS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType({
    "embedding": (
        "textual_inversion/textual_inversion.py",
        {"learnable_property": "object", "placeholder_token": WORD, "initializer_token": _START},
    ),
    "lora": ("text_to_image/train_text_to_image_lora.py", {"rank": 4}),
    "finetune": ("text_to_image/train_text_to_image.py", {}),
    "dreambooth": ("dreambooth/train_dreambooth.py", {"instance_prompt": f"a {WORD}"}),
    "controlnet": ("controlnet/train_controlnet.py", {}),
})  # fmt: skip
# They read a list of pictures and captions; the others all files of a folder as pictures.
_LISTED = ("lora", "finetune", "controlnet")


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
    return {"loss": losses[0], "step_seconds": _shortest(ends)}


class _Enough(Exception):
    """As many steps have been taken as are measured."""


def script(
    kind: str, model: Path, data: Path, output: Path, count: int, examples: Path
) -> dict[str, Any]:
    """Run a script of diffusers until it has taken so many steps; return a step's seconds."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    name, told = SCRIPTS[kind]
    ends: list[float] = []

    def stepped(*_: Any) -> None:
        ends.append(time.process_time())
        if len(ends) == count:
            raise _Enough

    register_optimizer_step_post_hook(stepped)
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "cache")})
    checkpoint = load_checkpoint(model)
    given = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir" if kind == "dreambooth" else "train_data_dir": _pictures_for_scripts(
            data, output, listed=kind in _LISTED
        ),
        "output_dir": output / "output",
        "resolution": checkpoint.unet_config.sample_size * checkpoint.vae_config.downscale,
        "train_batch_size": 1,
        "max_train_steps": count + 1,
        "learning_rate": _RATE,
        "mixed_precision": "no",
        "seed": 0,
        **told,
    }
    path = examples / name
    sys.argv = [str(path), *(str(word) for k, v in given.items() for word in (f"--{k}", v))]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(_Enough):
        runpy.run_path(str(path), run_name="__main__")
    if len(ends) < count:
        raise RuntimeError(f"{path} took {len(ends)} steps of {count}")
    return {"script": name, "step_seconds": _shortest(ends)}


def _pictures_for_scripts(data: Path, output: Path, *, listed: bool) -> Path:
    """Write the picture of a folder as scripts want it: alone, or with a list and its edges."""
    (example,) = find_examples(data)
    folder = output / "pictures"
    folder.mkdir(parents=True)
    shutil.copy(example.path, folder / "picture.png")
    if listed:
        pixels = np.array(read_pixels("data", example.path)[0])
        PILImage.fromarray(preprocess(pixels, "canny")).save(folder / "edges.png")
        line = {
            "file_name": "picture.png",
            "conditioning_image_file_name": "edges.png",
            "text": example.caption,
        }
        (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def _shortest(ends: Sequence[float]) -> float:
    return round(float(np.diff(ends).min()), 1)


def write_inputs(kind: str, model: Path, data: Path, path: Path) -> None:
    """Write what our first step reads of a folder with one picture, for the check to read."""
    checkpoint = load_checkpoint(model)
    cell = checkpoint.vae_config.downscale
    side = checkpoint.unet_config.sample_size * cell
    (example,) = find_examples(data)
    pixels = place(read_pixels("data", example.path)[0], (side, side)).pixels
    shape = (checkpoint.vae_config.latent_channels, side // cell, side // cell)
    generator = Draw.at(0, 0).torch
    torch.save(
        {
            "caption": f"a {WORD}" if kind == "embedding" else example.caption,
            "pixels": torch.from_numpy(np.array(pixels)),
            "hint": torch.from_numpy(np.array(preprocess(pixels, "canny"))),
            "of_latents": torch.randn(shape, generator=generator),
            "noise": torch.randn((1, *shape), generator=generator),
            "timestep": (torch.rand(1, generator=generator) * 1000).long(),
        },
        path,
    )


def check(kind: str, model: Path, inputs: Path) -> dict[str, Any]:
    """Return the loss of a script's first step, written down again, with what ours drew."""
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
    trained = _PREPARED[kind](parts, tokenizer)
    ids = tokenizer(given["caption"], padding="max_length", truncation=True, return_tensors="pt")
    pixels = given["pixels"].permute(2, 0, 1)[None].float() / 127.5 - 1
    hint = given["hint"].permute(2, 0, 1)[None].float() / 255
    noise, timestep = given["noise"], given["timestep"]
    with torch.no_grad():
        found = parts["vae"].encode(pixels).latent_dist
        drawn = found.mean + found.std * given["of_latents"]
        x = scheduler.add_noise(drawn * parts["vae"].config.scaling_factor, noise, timestep)
        context = parts["text_encoder"](ids.input_ids)[0]
        more = {}
        if kind == "controlnet":
            down, mid = trained(x, timestep, context, hint, return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        predicted = parts["unet"](x, timestep, context, return_dict=False, **more)[0]
        return {"loss": nn.functional.mse_loss(predicted.float(), noise.float()).item()}


def _embedding(parts: dict[str, Any], tokenizer: Any) -> nn.Module:
    """Add a token that begins as another."""
    start = tokenizer.encode(_START, add_special_tokens=False)[0]
    tokenizer.add_tokens(WORD)
    new = tokenizer.convert_tokens_to_ids(WORD)
    parts["text_encoder"].resize_token_embeddings(len(tokenizer))
    table: nn.Embedding = parts["text_encoder"].get_input_embeddings()
    table.weight.data[new] = table.weight.data[start]
    return table


def _lora(parts: dict[str, Any], tokenizer: Any) -> nn.Module:
    from peft import LoraConfig

    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    parts["unet"].add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    )
    unet: nn.Module = parts["unet"]
    return unet


def _whole(parts: dict[str, Any], tokenizer: Any) -> nn.Module:
    unet: nn.Module = parts["unet"]
    return unet.train()


def _controlnet(parts: dict[str, Any], tokenizer: Any) -> nn.Module:
    import diffusers

    net: nn.Module = diffusers.ControlNetModel.from_unet(parts["unet"])
    return net.train()


# What the first step of a script trains.
_PREPARED: Mapping[str, Callable[[dict[str, Any], Any], nn.Module]] = MappingProxyType({
    "embedding": _embedding,
    "lora": _lora,
    "dreambooth": _whole,
    "finetune": _whole,
    "controlnet": _controlnet,
})  # fmt: skip


def main() -> None:
    """Run the command."""
    side, kind, *words = sys.argv[1:]
    if side == "check":
        found = check(kind, *map(Path, words))
    else:
        model, data, output, count, *examples = words
        run = ours if side == "ours" else script
        found = run(kind, Path(model), Path(data), Path(output), int(count), *map(Path, examples))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
