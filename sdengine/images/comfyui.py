"""ComfyUI's pictures: what their graph says of the request, where it is of the plain kind.

Source: the text chunk `prompt` of its PNG files: a JSON object of nodes by number, each with its
`class_type` and its `inputs`, which are values or the number and the output of another node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sdengine.errors import ConfigError
from sdengine.request.keywords import WEB_UI_CLIP_SKIP
from sdengine.request.request import Request

_MAX_NODES = 10_000
_MAX_PATH = 200
_SAMPLER_NODES = ("KSampler", "KSamplerAdvanced")
_LATENT_NODES = ("EmptyLatentImage", "EmptySD3LatentImage")
_MODEL_NODES = ("CheckpointLoaderSimple", "CheckpointLoader", "UNETLoader")
_CLIP_NODES = (*_MODEL_NODES, "CLIPLoader", "DualCLIPLoader")
_LORA_NODES = ("LoraLoader", "LoraLoaderModelOnly")
_SAMPLERS = {
    "euler": "euler",
    "euler_ancestral": "euler_a",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "lms": "lms",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "ddim": "ddim",
    "deis": "deis",
    "uni_pc": "unipc",
}
_SCHEDULES = {
    name: name
    for name in ("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta")
}
# What a node that only holds a value calls it.
_VALUES = ("value", "text", "string", "seed", "int", "float")
# A textual inversion by its file, perhaps with a folder and an ending: prompts here have its name.
_EMBEDDING = re.compile(
    r"\bembedding:(?:[^\s,:()\[\]|]*[\\/])?([^\s,:()\[\]|]+?)"
    r"(?:\.(?:safetensors|pt|bin))?(?=[\s,:()\[\]|]|$)",
    re.IGNORECASE,
)


def is_graph(content: Mapping[str, Any]) -> bool:
    """Whether an object is a graph and not another tool's JSON."""
    return any(isinstance(node, dict) and "class_type" in node for node in content.values())


def read_graph(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return keywords of `Engine.request`, and what has no counterpart here.

    Raises:
        ConfigError: the graph is not text, one sampler and an empty latent image; the message
            names what could not be read.
    """
    return _Graph(content).read()


class _Graph:
    def __init__(self, content: Mapping[str, Any]) -> None:
        if len(content) > _MAX_NODES:
            raise _unreadable(f"{len(content)} nodes")
        self._nodes = {
            number: node
            for number, node in content.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }
        self._left: list[str] = []

    def read(self) -> tuple[dict[str, Any], list[str]]:
        samplers = [n for n in self._nodes.values() if n.get("class_type") in _SAMPLER_NODES]
        if len(samplers) != 1:
            raise _unreadable(f"{len(samplers)} samplers")
        node = samplers[0]
        fields = self._sampler(node)
        fields["prompt"] = self._text(node, "positive")
        fields["negative_prompt"] = self._text(node, "negative")
        fields |= self._latent(node)
        self._model(node)
        try:
            Request(**fields)
        except ConfigError as error:
            raise _unreadable(str(error)[:200]) from None
        if skips := self._clip_skips:
            fields[WEB_UI_CLIP_SKIP] = skips[0]
        return fields, list(dict.fromkeys(self._left))

    _clip_skips: tuple[int, ...] = ()

    def _sampler(self, node: Mapping[str, Any]) -> dict[str, Any]:
        for key, plain in (("denoise", 1), ("start_at_step", 0), ("add_noise", "enable")):
            if node["inputs"].get(key, plain) != plain:
                raise _unreadable(f"{key} {str(node['inputs'][key])[:40]} of its sampler")
        seed = "noise_seed" if "noise_seed" in node["inputs"] else "seed"
        fields = {
            "steps": self._value(node, "steps", int),
            "seed": self._value(node, seed, int),
            "guidance_scale": self._value(node, "cfg", (int, float)),
        }
        if self._value(node, "end_at_step", int, fields["steps"]) < fields["steps"]:
            raise _unreadable("end_at_step of its sampler")
        name = self._value(node, "sampler_name", str)
        schedule = self._value(node, "scheduler", str)
        sampler = _SAMPLERS.get(name.removesuffix("_gpu"))
        if sampler is None or schedule not in _SCHEDULES:
            self._left.append(f"sampler {name[:40]} {schedule[:40]}")
            return fields
        if name.endswith("_gpu"):
            self._left.append("noise of a GPU")
        return {**fields, "sampler": sampler, "schedule": _SCHEDULES[schedule]}

    def _text(self, node: Mapping[str, Any], side: str) -> str:
        """Return the prompt of one side of the sampler."""
        source = self._linked(node, side)
        kind = _kind(source)
        if kind == "ConditioningZeroOut" and side == "negative":
            return ""
        if kind == "CLIPTextEncode":
            text = self._value(source, "text", str)
        elif kind == "CLIPTextEncodeSDXL":
            text = self._value(source, "text_g", str)
            if self._value(source, "text_l", str) != text:
                raise _unreadable(f"two texts of its {side} prompt")
        else:
            raise _unreadable(f"{kind} of its {side} prompt")
        self._clip(source)
        return _EMBEDDING.sub(r"\1", str(text))

    def _clip(self, node: Mapping[str, Any]) -> None:
        for found in self._path(node, "clip", _CLIP_NODES):
            if _kind(found) == "CLIPSetLastLayer":
                self._clip_skips += (-self._value(found, "stop_at_clip_layer", int),)
            else:
                self._name(found)
        if len(set(self._clip_skips)) > 1:
            raise _unreadable("two layers of its text encoder")

    def _model(self, node: Mapping[str, Any]) -> None:
        for found in self._path(node, "model", _MODEL_NODES):
            self._name(found)

    def _name(self, node: Mapping[str, Any]) -> None:
        kind = _kind(node)
        if kind in _LORA_NODES:
            kind = f"LoRA {str(node['inputs'].get('lora_name'))[:80]}"
        self._left.append(kind)

    def _latent(self, node: Mapping[str, Any]) -> dict[str, Any]:
        source = self._linked(node, "latent_image")
        if _kind(source) not in _LATENT_NODES:
            raise _unreadable(f"{_kind(source)} of its latent image")
        if self._value(source, "batch_size", int, 1) != 1:
            self._left.append("batch_size, whose images have other noise here")
        return {side: self._value(source, side, int) for side in ("width", "height")}

    def _path(
        self, node: Mapping[str, Any], key: str, ends: tuple[str, ...]
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the nodes that a node's input goes through."""
        for _ in range(_MAX_PATH):
            if key not in node["inputs"]:
                return
            node = self._linked(node, key)
            if _kind(node) in ends:
                return
            yield node
        raise _unreadable(f"the path of {key}")

    def _linked(self, node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        link = node["inputs"].get(key)
        found = None
        if isinstance(link, list) and link and isinstance(link[0], str):
            found = self._nodes.get(link[0])
        if found is None:
            raise _unreadable(f"{key} of {_kind(node)}")
        return found

    def _value(self, node: Mapping[str, Any], key: str, kind: Any, default: Any = None) -> Any:
        """Return a value, or that of the node that an input is linked with."""
        value = node["inputs"].get(key, default)
        if isinstance(value, list):
            source = self._linked(node, key)["inputs"]
            held = [source[name] for name in (key, *_VALUES) if name in source]
            value = held[0] if held else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _unreadable(f"{key} of {_kind(node)}")
        return value


def _kind(node: Mapping[str, Any]) -> str:
    kind = str(node.get("class_type"))[:60]
    return kind if kind.isprintable() else ascii(kind)


def _unreadable(what: str) -> ConfigError:
    shown = what if what.isprintable() else ascii(what)
    return ConfigError(
        f"its graph of ComfyUI is not read, because of {shown}. Graphs of one sampler, two texts "
        "and an empty latent image are; give the prompt and options instead."
    )
