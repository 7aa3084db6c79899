"""Files that change pictures, in every format: each written, and applied to diffusers' pipeline.

A file is written by the library that its format comes from, or built from the documented layout.
diffusers, PEFT or LyCORIS then change diffusers' pipeline where they read the format; else the
format's formula, written here apart from the engine's code, does.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

from sdengine.benchmarks import seeded_hypernetworks, seeded_ip_adapters
from sdengine.benchmarks.adapter_loras import (
    STRENGTH,
    Applied,
    Make,
    encoders,
    kohya_lora,
    load_lora,
    of_diffusers,
    of_kohya,
    of_lycoris,
    of_onetrainer,
    of_peft,
)
from sdengine.models.unet import UNetConfig
from sdengine.request.ip_adapters import IPAdapter

NAME = "my-cat"  # that prompts call an embedding by
VECTORS = 8
SD1, SD2, SDXL = "SD 1", "SD 2", "SDXL"


@dataclass(frozen=True)
class Format:
    """One format of files.

    Args:
        make: writes a file into a folder and applies it to diffusers' pipeline.
        reference: what applies it there.
        absent: why there are no such files for a family.
    """

    make: Make
    reference: str = "diffusers"
    absent: Mapping[str, str] = field(default_factory=dict)


# Textual inversions.


def _vectors(pipeline: Any) -> list[Tensor]:
    """Return vectors [n,D] for each text encoder, louder than those of its table, as trained."""
    generator = torch.Generator().manual_seed(1)
    widths = [encoder.config.hidden_size for encoder in encoders(pipeline)]
    return [2 * torch.randn(VECTORS, width, generator=generator) for width in widths]


def _teach(pipeline: Any, given: Sequence[Any]) -> None:
    """Load for each text encoder what diffusers reads: a path, or vectors."""
    for number, (one, encoder) in enumerate(zip(given, encoders(pipeline), strict=True)):
        tokenizer = (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", None))[number]
        pipeline.load_textual_inversion(one, token=NAME, text_encoder=encoder, tokenizer=tokenizer)


def _web_ui(vectors: Any) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": NAME,
        "step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None,
    }  # fmt: skip


def _embedding(ending: str, write: Callable[[Tensor, Path], object], by_diffusers: bool) -> Make:
    """Return a maker of files for one text encoder; diffusers reads them, or gets the vectors."""

    def make(pipeline: Any, folder: Path) -> Applied:
        (vectors,) = _vectors(pipeline)
        path = folder / f"{NAME}{ending}"
        write(vectors, path)
        _teach(pipeline, [str(path) if by_diffusers else vectors])
        return Applied({"embeddings": [path]})

    return make


def _as_json(vectors: Tensor) -> bytes:
    return json.dumps(_web_ui({"TORCHTENSOR": vectors.tolist()})).encode()


def _in_text(vectors: Tensor, path: Path) -> None:
    info = PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(_as_json(vectors)).decode())
    Image.new("RGB", (64, 64), "white").save(path, pnginfo=info)


def _in_pixels(vectors: Tensor, path: Path) -> None:
    """Hide the JSON as the web UI does: halves of its bytes left and right of a picture."""
    height = 64
    packed = np.frombuffer(zlib.compress(_as_json(vectors), 9), np.uint8)
    packed = np.resize(packed, -(-len(packed) // (3 * height)) * 3 * height).reshape(height, -1, 3)
    number, masks = 0, []
    for _ in range(packed.size):
        number = (1664525 * number + 1013904223) % 2**32
        masks.append(number % 255 & 15)
    mask = np.asarray(masks, np.uint8).reshape(packed.shape)
    loud, black = np.uint8(0xF0), np.zeros((height, 1, 3), np.uint8)
    halves = [loud | half ^ mask for half in (packed & 15, packed >> 4)]
    middle = np.full((height, 64, 3), 255, np.uint8)
    pixels = np.concatenate([halves[0], black, middle, black, halves[1]], axis=1)
    Image.fromarray(pixels).save(path)


def _pair(pipeline: Any, folder: Path) -> Applied:
    vectors = _vectors(pipeline)
    path = folder / f"{NAME}.safetensors"
    save_file(dict(zip(("clip_l", "clip_g"), vectors, strict=True)), path)
    _teach(pipeline, vectors)
    return Applied({"embeddings": [path]})


def _bundled(pipeline: Any, folder: Path) -> Applied:
    vectors, path = _vectors(pipeline), folder / "lora.safetensors"
    keys = ("clip_l", "clip_g") if len(vectors) > 1 else ("string_to_param.*",)
    brought = {f"bundle_emb.{NAME}.{key}": v for key, v in zip(keys, vectors, strict=True)}
    plain = kohya_lora(pipeline)
    save_file({**plain, **brought}, path)
    load_lora(pipeline, plain)
    _teach(pipeline, vectors)
    return Applied({"loras": {path: STRENGTH}, "embeddings": [path]})


# What reads a context: hypernetworks and IP-Adapters.


def _hypernetwork(pipeline: Any, folder: Path) -> Applied:
    """Hook diffusers' attention as the web UI hooks its own."""
    read = {m.to_k.in_features for m in pipeline.unet.modules() if hasattr(m, "to_k")}
    path, pairs = seeded_hypernetworks.write(
        folder / "net.pt", sorted(read), std=0.15, activation="swish", norm=True,
        structure=(1, 2, 2, 1), dropout=(0, 0.3, 0, 0), activate_output=False,
    )  # fmt: skip
    pipeline.unet.set_attn_processor(seeded_hypernetworks.Hooked([(pairs, STRENGTH)]))
    return Applied({"hypernetworks": {path: STRENGTH}})


def _ip_adapter(kind: str) -> Make:
    def make(pipeline: Any, folder: Path) -> Applied:
        tensors = seeded_ip_adapters.make_ip_adapter(
            UNetConfig.from_dict(dict(pipeline.unet.config)), kind
        )
        path = seeded_ip_adapters.save_ip_adapter(folder / f"{kind}.bin", tensors)
        pipeline.load_ip_adapter(
            str(folder), subfolder="", weight_name=path.name, image_encoder_folder=None
        )
        pipeline.set_ip_adapter_scale(STRENGTH)
        if kind == "face_id":
            face = torch.randn(
                1, 1, seeded_ip_adapters.IDENTITY, generator=torch.Generator().manual_seed(4)
            )
            both = torch.cat([torch.zeros_like(face), face])
            adapter = IPAdapter(path, embeds=both.numpy(), scale=STRENGTH)
            return Applied({"ip_adapters": [adapter]}, {"ip_adapter_image_embeds": [both]})
        seen = seeded_ip_adapters.picture()
        adapter = IPAdapter(path, seen, scale=STRENGTH)
        return Applied({"ip_adapters": [adapter]}, {"ip_adapter_image": Image.fromarray(seen)})

    return make


_ONE_ENCODER = {SDXL: "it holds vectors for one text encoder, SDXL has two: the pair below"}
_PAIR = dict.fromkeys((SD1, SD2), "one text encoder")
_NO_IP = {SD2: "none was published"}
_GIVEN = "diffusers, given the vectors"
FORMATS: Mapping[str, Format] = {
    "embedding, web UI's .pt": Format(
        _embedding(".pt", lambda v, path: torch.save(_web_ui(v), path), True), absent=_ONE_ENCODER
    ),
    "embedding, diffusers' .bin": Format(
        _embedding(".bin", lambda v, path: torch.save({NAME: v}, path), True), absent=_ONE_ENCODER
    ),
    "embedding, safetensors": Format(
        _embedding(".safetensors", lambda v, path: save_file({"emb_params": v}, path), True),
        absent=_ONE_ENCODER,
    ),
    "embedding, text of a PNG": Format(_embedding(".png", _in_text, False), _GIVEN, _ONE_ENCODER),
    "embedding, pixels of a PNG": Format(
        _embedding(".png", _in_pixels, False), _GIVEN, _ONE_ENCODER
    ),
    "embedding, SDXL pair": Format(_pair, _GIVEN, _PAIR),
    "embedding bundled in a LoRA": Format(_bundled, _GIVEN),
    "LoRA, kohya, diffusers' names": Format(of_kohya(False)),
    "LoRA, kohya, original names": Format(
        of_kohya(True), "diffusers, in SD 1 and 2 given its own names"
    ),
    "LoRA, diffusers": Format(of_diffusers),
    "LoRA, PEFT": Format(of_peft(lora_alpha=6), "PEFT"),
    "LoRA, PEFT, rank-stabilised": Format(of_peft(lora_alpha=3, use_rslora=True), "PEFT"),
    "LoRA, PEFT, DoRA": Format(of_peft(lora_alpha=6, use_dora=True), "PEFT"),
    "LoRA, OneTrainer": Format(of_onetrainer(False), "formula"),
    "LoRA, OneTrainer, dotted names": Format(of_onetrainer(True), "formula"),
    "LoCon": Format(of_lycoris(), "LyCORIS"),
    "LoCon, rank-stabilised": Format(of_lycoris(rs_lora=True), "LyCORIS"),
    "LoCon, Tucker": Format(of_lycoris(use_tucker=True), "LyCORIS"),
    "LoCon with norms and biases": Format(of_lycoris(train_norm=True), "LyCORIS"),
    "LoHa": Format(of_lycoris(size=1.5, algo="loha"), "LyCORIS"),
    "LoHa, Tucker": Format(of_lycoris(size=1.5, algo="loha", use_tucker=True), "LyCORIS"),
    "LoKr": Format(of_lycoris(algo="lokr"), "LyCORIS"),
    "LoKr, both factors low": Format(
        of_lycoris(algo="lokr", decompose_both=True, factor=4), "LyCORIS"
    ),
    "LoKr, Tucker": Format(of_lycoris(algo="lokr", use_tucker=True, factor=4), "LyCORIS"),
    "LoKr, whole factors": Format(of_lycoris(algo="lokr", full_matrix=True), "LyCORIS"),
    "DoRA by rows": Format(of_lycoris(1.0, dora_wd=True), "LyCORIS"),
    "DoRA by columns": Format(of_lycoris(1.0, dora_wd=True, wd_on_output=False), "LyCORIS"),
    "full differences": Format(of_lycoris(size=0.5, algo="full"), "LyCORIS"),
    "IA3": Format(of_lycoris(algo="ia3"), "LyCORIS"),
    "hypernetwork": Format(_hypernetwork, "hooks in diffusers"),
    "IP-Adapter": Format(_ip_adapter("plain"), absent=_NO_IP),
    "IP-Adapter Plus": Format(_ip_adapter("plus"), absent=_NO_IP),
    "IP-Adapter Full Face": Format(
        _ip_adapter("full"), absent={**_NO_IP, SDXL: "none was published"}
    ),
    "IP-Adapter FaceID": Format(_ip_adapter("face_id"), absent=_NO_IP),
}
