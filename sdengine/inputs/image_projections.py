"""Image projections of IP-Adapters: what an image encoder saw, as tokens of a prompt's width.

Source: "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models" (Ye et
al. 2023), section 3.2; the resampler of "Flamingo" (Alayrac et al. 2022), section 2.1, as the
published adapters' tensors are laid out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.hypernetworks import ACTIVATIONS
from sdengine.storage.tensor_file import to_float32

Floats = NDArray[np.float32]
Shape = tuple[int, ...]
# Kinds, and which of an image encoder's results they read: one vector of a picture, its states
# before the last layer, or a vector that another network gave.
KINDS = {"plain": "vector", "plus": "states", "full": "states", "face_id": "given"}
_EPSILON = 1e-5  # of every norm
_HEAD = 64  # channels of a head of the resampler
_BLOCK = re.compile(r"layers\.([0-9]{1,3})\.(.+)")
_MAX_BLOCKS = 64
_MAX_TOKENS = 1024


class UnfittingError(ValueError):
    """Report tensors that make no projection, in words that follow a file's name."""


@dataclass(frozen=True)
class Projection:
    """One file's projection.

    Args:
        kind: one of KINDS.
        tokens: that it makes of a picture.
        in_width: numbers of a vector, or of a state, that it reads.
        out_width: of a token.
        weights: by name, as the file holds them: bf16 as its bits.
    """

    kind: str
    tokens: int
    in_width: int
    out_width: int
    weights: Mapping[str, NDArray[np.generic]]

    @property
    def reads(self) -> str:
        """What of a picture it reads: "vector", "states" or "given"."""
        return KINDS[self.kind]

    def __call__(self, embeds: Floats) -> Floats:
        """Return tokens [pictures, tokens, out_width].

        Args:
            embeds: [pictures, in_width], or [pictures, states, in_width] fp32.
        """
        if self.kind == "plus":
            return self._resampled(embeds)
        if self.kind == "plain":
            made = self._linear("proj", embeds)
        else:
            made = self._linear("proj.2", _gelu(self._linear("proj.0", embeds)))
        norm = "proj.3" if self.kind == "full" else "norm"
        return self._norm(norm, made.reshape(len(embeds), -1, self.out_width))

    def _resampled(self, states: Floats) -> Floats:
        x = self._linear("proj_in", states)
        latents = np.repeat(self._tensor("latents"), len(states), axis=0)
        for block in range(_num_blocks(self.weights)):
            head = f"layers.{block}"
            normed = self._norm(f"{head}.0.norm2", latents)
            context = np.concatenate([self._norm(f"{head}.0.norm1", x), normed], axis=1)
            keys, values = np.split(self._linear(f"{head}.0.to_kv", context), 2, axis=2)
            attended = _attention(self._linear(f"{head}.0.to_q", normed), keys, values)
            latents = latents + self._linear(f"{head}.0.to_out", attended)
            wide = self._linear(f"{head}.1.1", self._norm(f"{head}.1.0", latents))
            latents = latents + self._linear(f"{head}.1.3", _gelu(wide))
        return self._norm("norm_out", self._linear("proj_out", latents))

    def _tensor(self, name: str) -> Floats:
        found: Floats = to_float32(self.weights[name])
        return found

    def _linear(self, name: str, x: Floats) -> Floats:
        y: Floats = x @ self._tensor(f"{name}.weight").T
        return y + self._tensor(f"{name}.bias") if f"{name}.bias" in self.weights else y

    def _norm(self, name: str, x: Floats) -> Floats:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        normed: Floats = centred / np.sqrt(variance + np.float32(_EPSILON))
        return normed * self._tensor(f"{name}.weight") + self._tensor(f"{name}.bias")


def read_projection(weights: Mapping[str, NDArray[np.generic]]) -> Projection:
    """Return the projection that some tensors are of, all of them and no more.

    Args:
        weights: of `image_proj` in a file, by name.

    Raises:
        UnfittingError: they make none, or one of a kind that is not computed; by name and shape.
    """
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if any(name.startswith("perceiver_resampler.") for name in shapes):
        raise UnfittingError(
            "it is a FaceID Plus adapter, which reads a face's identity and a picture of it at "
            "once; that kind is not applied. Plain, Plus, Full Face and FaceID adapters are."
        )
    if "latents" in shapes:
        return _plus(shapes, weights)
    if "proj.3.weight" in shapes:
        return _perceptron("full", "proj.3", shapes, weights)
    if "proj.0.weight" in shapes:
        return _perceptron("face_id", "norm", shapes, weights)
    (out,) = _shape(shapes, "norm.weight", 1)
    rows, width = _shape(shapes, "proj.weight", 2)
    expected = {"proj.weight": (rows, width), "proj.bias": (rows,), **_of_norm("norm", out)}
    _require(shapes, expected)
    return Projection("plain", _tokens("proj.weight", rows, out), width, out, weights)


def _perceptron(
    kind: str, norm: str, shapes: Mapping[str, Shape], weights: Mapping[str, NDArray[np.generic]]
) -> Projection:
    """Two layers; of Full Face they map each state, of FaceID one vector to all tokens."""
    inner, width = _shape(shapes, "proj.0.weight", 2)
    rows, _ = _shape(shapes, "proj.2.weight", 2)
    (out,) = _shape(shapes, f"{norm}.weight", 1)
    expected = {
        "proj.0.weight": (inner, width),
        "proj.0.bias": (inner,),
        "proj.2.weight": (out if kind == "full" else rows, inner),
        "proj.2.bias": (out if kind == "full" else rows,),
        **_of_norm(norm, out),
    }
    _require(shapes, expected)
    # Full Face has a token for each state, so their number is the picture's.
    tokens = 0 if kind == "full" else _tokens("proj.2.weight", rows, out)
    return Projection(kind, tokens, width, out, weights)


def _plus(shapes: Mapping[str, Shape], weights: Mapping[str, NDArray[np.generic]]) -> Projection:
    one, tokens, hidden = _shape(shapes, "latents", 3)
    _, width = _shape(shapes, "proj_in.weight", 2)
    out, _ = _shape(shapes, "proj_out.weight", 2)
    blocks = _num_blocks(shapes)
    expected = {
        "latents": (1, tokens, hidden),
        "proj_in.weight": (hidden, width),
        "proj_in.bias": (hidden,),
        "proj_out.weight": (out, hidden),
        "proj_out.bias": (out,),
        **_of_norm("norm_out", out),
    }
    for block in range(blocks):
        head = f"layers.{block}"
        inner, _ = _shape(shapes, f"{head}.0.to_q.weight", 2)
        wide, _ = _shape(shapes, f"{head}.1.1.weight", 2)
        if inner % _HEAD:
            raise UnfittingError(
                f"{head}.0.to_q.weight gives {inner} numbers, not heads of {_HEAD}."
            )
        expected |= {
            **_of_norm(f"{head}.0.norm1", hidden),
            **_of_norm(f"{head}.0.norm2", hidden),
            f"{head}.0.to_q.weight": (inner, hidden),
            f"{head}.0.to_kv.weight": (2 * inner, hidden),
            f"{head}.0.to_out.weight": (hidden, inner),
            **_of_norm(f"{head}.1.0", hidden),
            f"{head}.1.1.weight": (wide, hidden),
            f"{head}.1.3.weight": (hidden, wide),
        }
    _require(shapes, expected)
    return Projection("plus", _tokens("latents", one * tokens, 1), width, out, weights)


def _num_blocks(names: Mapping[str, object]) -> int:
    numbers = {int(found[1]) for name in names if (found := _BLOCK.fullmatch(name))}
    count = max(numbers, default=-1) + 1
    if not 1 <= count <= _MAX_BLOCKS:
        raise UnfittingError(f"its resampler has {count} layers; expected 1 to {_MAX_BLOCKS}.")
    return count


def _tokens(name: str, rows: int, out: int) -> int:
    if rows % out or not 1 <= rows // out <= _MAX_TOKENS:
        raise UnfittingError(f"{name} has {rows} rows, not 1 to {_MAX_TOKENS} tokens of {out}.")
    return rows // out


def _of_norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _shape(shapes: Mapping[str, Shape], name: str, rank: int) -> Shape:
    found = shapes.get(name)
    if found is None:
        raise UnfittingError(f"image_proj.{name} is missing.")
    if len(found) != rank or 0 in found:
        raise UnfittingError(f"image_proj.{name} is {list(found)}; expected {rank} dimensions.")
    return found


def _require(shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    for name, shape in expected.items():
        if name not in shapes:
            raise UnfittingError(f"image_proj.{name} {list(shape)} is missing.")
        if shapes[name] != shape:
            raise UnfittingError(
                f"image_proj.{name} is {list(shapes[name])}; expected {list(shape)}."
            )
    if unknown := sorted(shapes.keys() - expected.keys()):
        raise UnfittingError(f"image_proj.{unknown[0][:120]} is unknown to a projection like it.")


def _gelu(x: Floats) -> Floats:
    return ACTIVATIONS["gelu"](x).astype(np.float32)


def _attention(queries: Floats, keys: Floats, values: Floats) -> Floats:
    """Attend with heads of 64 channels; all are [pictures, tokens, channels]."""
    q, k, v = (
        one.reshape(*one.shape[:2], -1, _HEAD).transpose(0, 2, 1, 3)
        for one in (queries, keys, values)
    )
    scores = (q @ k.transpose(0, 1, 3, 2)) * np.float32(_HEAD**-0.5)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    found: Floats = (weights @ v).transpose(0, 2, 1, 3).reshape(queries.shape)
    return found
