"""IP-Adapters with seeded weights in the published layout, a tiny image encoder, and a picture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sdengine.bundle.image_prompts import cross_attentions
from sdengine.checkpoints.weights import shapes_of
from sdengine.models.unet import UNet2DConditionModel, UNetConfig

# Of the tiny image encoder.
HIDDEN, PROJECTION, IMAGE, PATCH = 32, 24, 28, 7
IDENTITY = 20  # numbers of a face
Tensors = dict[str, torch.Tensor]


def save_encoder(folder: Path, *, seed: int = 51, **changes: Any) -> Path:
    """Write an image encoder with transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    values: dict[str, Any] = {
        "hidden_size": HIDDEN, "intermediate_size": 64, "projection_dim": PROJECTION,
        "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": IMAGE,
        "patch_size": PATCH, "hidden_act": "gelu", **changes,
    }  # fmt: skip
    config = CLIPVisionConfig(**values)
    model: Any = CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    return folder


def image_processor(size: int = IMAGE) -> Any:
    """Return what prepares pictures of `size` pixels for an image encoder, of transformers."""
    import transformers

    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ImportError:  # of releases that have it under the other name alone
        return transformers.CLIPImageProcessor(size=size, crop_size=size)
    return CLIPImageProcessorPil(size=size, crop_size=size)


def make_ip_adapter(
    unet: UNetConfig, kind: str = "plain", *, seed: int = 61, tokens: int = 4
) -> Tensors:
    """Return the tensors of an adapter by name, seeded so that it makes a difference."""
    width = unet.cross_attention_dim
    shapes = {f"image_proj.{name}": shape for name, shape in _PROJECTIONS[kind](width, tokens)}
    for index, (channels, _) in enumerate(_layers(unet).values()):
        for name in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * index + 1}.{name}.weight"] = (channels, width)
    generator = torch.Generator().manual_seed(seed)
    return {name: _seeded(name, shape, generator) for name, shape in shapes.items()}


def save_ip_adapter(path: Path, tensors: Tensors) -> Path:
    """Write an adapter as its ending asks for: flat, or a pickle of both parts."""
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        return path
    parts: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    torch.save(parts, path)
    return path


def picture(seed: int = 0, width: int = 50, height: int = 41) -> np.ndarray[Any, Any]:
    """Draw coloured shapes."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (3 + seed + c)) * np.cos(y / (4 + 2 * c)) for c in range(3)]
    return (np.stack(waves, axis=2) * 127 + 128).astype(np.uint8)


@functools.cache
def _layers(unet: UNetConfig) -> dict[str, tuple[int, int]]:
    with torch.device("meta"):
        return cross_attentions(shapes_of(UNet2DConditionModel(unet)))


def _seeded(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values: torch.Tensor = torch.randn(shape, generator=generator)
    if len(shape) != 2:
        return values
    factor: float = (2 if "to_v_ip" in name else 1) / shape[-1] ** 0.5
    return values * factor


def _norm(name: str, width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _linear(name: str, rows: int, columns: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", (rows, columns)), (f"{name}.bias", (rows,))]


def _plus(width: int, tokens: int) -> list[tuple[str, tuple[int, ...]]]:
    hidden, inner = 48, 128  # two heads of 64
    found: list[tuple[str, tuple[int, ...]]] = [("latents", (1, tokens, hidden))]
    found += _linear("proj_in", hidden, HIDDEN) + _linear("proj_out", width, hidden)
    found += _norm("norm_out", width)
    for block in range(4):  # as diffusers makes it of any file
        head = f"layers.{block}"
        found += _norm(f"{head}.0.norm1", hidden) + _norm(f"{head}.0.norm2", hidden)
        found += [
            (f"{head}.0.to_q.weight", (inner, hidden)),
            (f"{head}.0.to_kv.weight", (2 * inner, hidden)),
            (f"{head}.0.to_out.weight", (hidden, inner)),
        ]
        found += _norm(f"{head}.1.0", hidden)
        found += [(f"{head}.1.1.weight", (4 * hidden, hidden))]
        found += [(f"{head}.1.3.weight", (hidden, 4 * hidden))]
    return found


_PROJECTIONS: dict[str, Callable[[int, int], list[tuple[str, tuple[int, ...]]]]] = {
    "plain": lambda width, tokens: [
        *_linear("proj", tokens * width, PROJECTION),
        *_norm("norm", width),
    ],
    "plus": _plus,
    "full": lambda width, _: [
        *_linear("proj.0", HIDDEN, HIDDEN),
        *_linear("proj.2", width, HIDDEN),
        *_norm("proj.3", width),
    ],
    "face_id": lambda width, tokens: [
        *_linear("proj.0", 2 * IDENTITY, IDENTITY),
        *_linear("proj.2", tokens * width, 2 * IDENTITY),
        *_norm("norm", width),
    ],
}
