"""Names of an adapter's keys: made from the known modules, in every convention.

Underscores in place of dots make the way back ambiguous, so that nothing is parsed: each module
says what it would be called.

Source: the keys that kohya's sd-scripts, LyCORIS, OneTrainer, ComfyUI, diffusers and PEFT write.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence

from sdengine.adapters.modules import TEXT_ENCODERS, Module
from sdengine.adapters.original_names import openclip_paths, unet_paths

# One module, or the three whose rows a fused matrix holds one after the other.
Target = tuple[Module, ...]
_ATTENTION = re.compile(r"(.*\.attn[12])\.(to_[qkv]|to_out)(?:\.0)?")
_TEXT_ATTENTION = re.compile(r"(.*\.self_attn)\.(q|k|v|out)_proj")
_PEFT = "base_model.model."
_CLIPS = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}
_SEPARATE = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


@functools.lru_cache(maxsize=4)
def key_stems(modules: tuple[Module, ...]) -> Mapping[str, Sequence[Target]]:
    """Return what each key's stem stands for, which is all before ".lora_up.weight" and its kin.

    Two text encoders may share a stem where a file is of one network: shapes tell which it is.
    """
    stems: dict[str, list[Target]] = {}
    encoders = [name for name in TEXT_ENCODERS if any(m.network == name for m in modules)]
    for network in dict.fromkeys(module.network for module in modules):
        own = {module.path: module for module in modules if module.network == network}
        names = _unet_stems if network == "unet" else _text_stems
        for stem, target in names(network, own, len(encoders) == 1):
            known = stems.setdefault(stem, [])
            if target not in known:
                known.append(target)
    return stems


def _unet_stems(network: str, modules: dict[str, Module], _: bool) -> Iterator[tuple[str, Target]]:
    for path, module in modules.items():
        for dotted in (path, *_processor_names(path)):
            for prefix in ("unet.", "", _PEFT, f"unet.{_PEFT}"):
                yield f"{prefix}{dotted}", (module,)
        for prefix in ("lora_unet_", "lycoris_unet_", "lycoris_"):
            yield prefix + _flat(path), (module,)
    for path, original in unet_paths(modules).items():
        yield f"lora_unet_{_flat(original)}", (modules[path],)
        yield f"lycoris_unet_{_flat(original)}", (modules[path],)
        for prefix in ("diffusion_model.", "model.diffusion_model.", "unet."):
            yield prefix + original, (modules[path],)


def _text_stems(
    network: str, modules: dict[str, Module], alone: bool
) -> Iterator[tuple[str, Target]]:
    flat = [_SEPARATE[network], *(["lora_te_"] if alone else [])]
    flat += [prefix.replace("lora_", "lycoris_") for prefix in flat]
    for path, module in modules.items():
        short = path.removeprefix("text_model.")
        for dotted in dict.fromkeys((path, short, *_text_processor_names(path))):
            for prefix in (f"{network}.", _PEFT, f"{network}.{_PEFT}"):
                yield prefix + dotted, (module,)
            for clip in _CLIPS[network]:
                yield f"text_encoders.{clip}.transformer.{dotted}", (module,)
                yield f"{clip}.{dotted}", (module,)
        for prefix in flat:
            yield prefix + _flat(path), (module,)
            yield prefix + _flat(short), (module,)
    fused: dict[str, list[Module]] = {}
    for path, original in openclip_paths(modules).items():
        fused.setdefault(original, []).append(modules[path])
    for original, parts in fused.items():
        order = {"q": 0, "k": 1, "v": 2}
        target = tuple(sorted(parts, key=lambda m: order.get(_matrix(m.path), 0)))
        if len(target) == 1 and original.endswith("attn.in_proj"):
            continue
        for prefix in flat:
            yield prefix + _flat(original), target
            yield f"{prefix}model_{_flat(original)}", target


def _matrix(path: str) -> str:
    return path.rpartition(".")[2].removesuffix("_proj")


def _processor_names(path: str) -> Iterator[str]:
    """Yield what diffusers called an attention's LoRA while it was a processor."""
    if match := _ATTENTION.fullmatch(path):
        yield f"{match[1]}.processor.{match[2]}_lora"
        yield f"{match[1]}.{match[2]}_lora"


def _text_processor_names(path: str) -> Iterator[str]:
    if match := _TEXT_ATTENTION.fullmatch(path):
        yield f"{match[1]}.to_{match[2]}_lora"


def _flat(path: str) -> str:
    return path.replace(".", "_")
