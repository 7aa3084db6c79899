"""LoRAs and their kin, written in every format and applied to diffusers' pipeline; see FORMATS."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sdengine.adapters.original_names import unet_paths

STRENGTH, RANK, ALPHA = 0.8, 4, 2.0
_NETWORKS = ("unet", "text_encoder", "text_encoder_2")
# What trainers change of each network unless told otherwise.
_TARGETS = {
    "unet": (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.0.proj", ".proj_in", ".conv1"),
    "text_encoder": (".q_proj", ".v_proj", ".out_proj", ".fc1"),
}
_TARGETS["text_encoder_2"] = _TARGETS["text_encoder"]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Applied:
    """What both sides are told of a file.

    Args:
        request: fields of our request that take it.
        call: further arguments of diffusers' pipeline, which was changed already.
    """

    request: Mapping[str, Any]
    call: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Any, Path], Applied]


def encoders(pipeline: Any) -> list[Any]:
    """Return a pipeline's text encoders."""
    found = (getattr(pipeline, name, None) for name in _NETWORKS[1:])
    return [encoder for encoder in found if encoder is not None]


def _layers(pipeline: Any, targets: Mapping[str, Any] = _TARGETS) -> Iterator[tuple[str, str, Any]]:
    """Yield network, published path and layer of what has a matrix and such an ending."""
    for network in _NETWORKS:
        module = getattr(pipeline, network, None)
        for path, layer in module.named_modules() if module is not None else ():
            if path.endswith(targets[network]) and isinstance(layer, nn.Linear | nn.Conv2d):
                is_short = network != "unet" and path.startswith("encoder.")  # new transformers
                yield network, "text_model." * is_short + path, layer


def _factors(layer: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the factors of a difference that is about as large as the layer's weight."""
    out, inner, *kernel = layer.weight.shape
    down = torch.randn(RANK, inner, *kernel, generator=generator) / layer.weight[0].numel() ** 0.5
    return down, torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) * 0.7


def _written(
    pipeline: Any, stem: Callable[[str, str], str], targets: Mapping[str, Any] = _TARGETS
) -> Iterator[tuple[Any, Tensors, Tensor]]:
    """Yield each layer, its tensors by key, and the difference that they stand for."""
    generator = torch.Generator().manual_seed(2)
    for network, path, layer in _layers(pipeline, targets):
        down, up = _factors(layer, generator)
        head = stem(network, path)
        tensors = {
            f"{head}.lora_down.weight": down,
            f"{head}.lora_up.weight": up,
            f"{head}.alpha": torch.tensor(ALPHA),
        }
        difference = ALPHA / RANK * (up.flatten(1) @ down.flatten(1))
        yield layer, tensors, difference.reshape(layer.weight.shape)


def _original_paths(unet: Any) -> dict[str, str]:
    """Return which original path is which of diffusers', as its reader of checkpoints has it."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    every = unet_paths([path for path, _ in unet.named_modules()]).values()
    given = {
        f"model.diffusion_model.{path}.{kind}": path
        for path in every
        for kind in ("weight", "bias")
    }
    found = convert_ldm_unet_checkpoint(given, unet.config)
    return {name.rpartition(".")[0]: path for name, path in found.items()}


def _stems(pipeline: Any, original: bool = False) -> Callable[[str, str], str]:
    """Return what kohya calls a layer: by diffusers' path, or in the U-Net by the original one."""
    alone = len(encoders(pipeline)) == 1
    heads = {"unet": "unet", "text_encoder": "te" if alone else "te1", "text_encoder_2": "te2"}
    paths = _original_paths(pipeline.unet) if original else {}

    def stem(network: str, path: str) -> str:
        own = paths.get(path, path) if network == "unet" else path
        return f"lora_{heads[network]}_{own.replace('.', '_')}"

    return stem


def kohya_lora(pipeline: Any, original: bool = False) -> Tensors:
    """Return a LoRA of all networks by kohya's keys, the U-Net's by the original paths or not."""
    rows = _written(pipeline, _stems(pipeline, original))
    return {key: tensor for _, tensors, _ in rows for key, tensor in tensors.items()}


def load_lora(pipeline: Any, given: Any) -> None:
    """Load a path, or tensors by key, at STRENGTH."""
    given = dict(given) if isinstance(given, Mapping) else given
    pipeline.load_lora_weights(given, adapter_name="it")
    pipeline.set_adapters("it", STRENGTH)


def of_kohya(original: bool) -> Make:
    """Return a maker of kohya's files; diffusers takes original paths for SDXL's alone."""

    def make(pipeline: Any, folder: Path) -> Applied:
        path = folder / "lora.safetensors"
        save_file(kohya_lora(pipeline, original), path)
        is_read = not original or hasattr(pipeline, "text_encoder_2")
        load_lora(pipeline, str(path) if is_read else kohya_lora(pipeline))
        return Applied({"loras": {path: STRENGTH}})

    return make


def of_diffusers(pipeline: Any, folder: Path) -> Applied:
    """Let diffusers save what PEFT put into its networks, and load it again."""
    import peft

    library: Any = peft  # its annotations are incomplete
    layers: dict[str, Any] = {}
    for network in _NETWORKS:
        if (module := getattr(pipeline, network, None)) is not None:
            targets = [ending.lstrip(".") for ending in _TARGETS[network]]
            config = library.LoraConfig(r=RANK, lora_alpha=6, target_modules=targets)
            module.add_adapter(config)
            _seed(module, ("lora_",))
            told = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
            layers[f"{network}_lora_layers"] = library.get_peft_model_state_dict(module)
            layers[f"{network}_lora_adapter_metadata"] = told
    pipeline.save_lora_weights(folder, **layers)
    pipeline.unload_lora_weights()
    load_lora(pipeline, str(folder / "pytorch_lora_weights.safetensors"))
    return Applied({"loras": {folder / "pytorch_lora_weights.safetensors": STRENGTH}})


def of_peft(**options: Any) -> Make:
    """Return a maker of folders that PEFT saves, which then computes the U-Net's layers itself."""

    def make(pipeline: Any, folder: Path) -> Applied:
        import peft

        targets = [ending.lstrip(".") for ending in _TARGETS["unet"]]
        config = peft.LoraConfig(r=RANK, target_modules=targets, **options)
        model = peft.get_peft_model(pipeline.unet, config)
        _seed(model, ("lora_",))
        model.save_pretrained(str(folder / "saved"))
        return Applied({"loras": {folder / "saved": 1.0}})

    return make


_OMI = {"unet": "unet", "text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def of_onetrainer(dotted: bool) -> Make:
    """Return a maker of files with every layer; the formula is W + strength alpha/r up down."""

    def make(pipeline: Any, folder: Path) -> Applied:
        paths = _original_paths(pipeline.unet)

        def stem(network: str, path: str) -> str:
            return f"{_OMI[network]}.{paths[path] if network == 'unet' else path}"

        every = dict.fromkeys(_NETWORKS, "")
        rows = list(_written(pipeline, stem if dotted else _stems(pipeline), every))
        path = folder / "lora.safetensors"
        save_file({key: tensor for _, tensors, _ in rows for key, tensor in tensors.items()}, path)
        for layer, _, difference in rows:
            layer.weight += STRENGTH * difference
        return Applied({"loras": {path: STRENGTH}})

    return make


def _seed(module: nn.Module, marks: tuple[str, ...] = ("",), size: float = 0.7) -> None:
    """Give an adapter's parameters numbers that make products about as large as weights.

    Much larger ones make networks that magnify rounding until no two libraries agree.
    """
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if any(mark in name for mark in marks):
            noise = size * torch.randn(parameter.shape, generator=generator)
            if "magnitude" in name or "dora_scale" in name:
                parameter.copy_(parameter * (1 + 0.3 * noise))
            else:
                parameter.copy_(noise / max(parameter[:1].numel(), 1) ** 0.5)


# What its networks are made for: its own presets name layers of kohya's U-Net.
_EVERY_LAYER = """
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = ["conv_in", "conv_out"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
text_encoder_target_name = []
[name_algo_map]
"""
_OF_IA3 = """
unet_target_module = []
unet_target_name = [".*to_k", ".*to_v", ".*ff.net.2"]
text_encoder_target_module = []
text_encoder_target_name = [".*k_proj", ".*v_proj", ".*mlp.fc2"]
[name_algo_map.".*ff.net.2"]
train_on_input = true
[name_algo_map.".*mlp.fc2"]
train_on_input = true
"""


def of_lycoris(strength: float = STRENGTH, size: float = 0.7, **options: Any) -> Make:
    """Return a maker of files that LyCORIS saves, whose default forward then computes the layers.

    Args:
        strength: 1 where LyCORIS takes another for something else than the web UI does.
        size: of the numbers in it.
        options: of its network for kohya's trainer.
    """

    def make(pipeline: Any, folder: Path) -> Applied:
        kohya: Any = importlib.import_module("lycoris.kohya")  # it has no annotations
        preset = folder / "preset.toml"
        preset.write_text(_OF_IA3 if options.get("algo") == "ia3" else _EVERY_LAYER)
        texts, unet = encoders(pipeline), pipeline.unet
        given = texts if len(texts) > 1 else texts[0]
        network = kohya.create_network(
            strength, RANK, ALPHA, None, given, unet, preset=str(preset), **options
        )
        network.apply_to(given, unet, True, True)
        _seed(network.eval(), size=size)
        path = folder / "lycoris.safetensors"
        network.save_weights(str(path), torch.float32, {})
        return Applied({"loras": {path: strength}})

    return make
