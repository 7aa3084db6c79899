"""Adapters against the libraries that make them: PEFT's differences, diffusers' fused U-Nets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import Array, draw, flat, read, shape_of, tiny_modules, tiny_shapes, write
from support.tiny_architectures import TINY
from tolerances import assert_close

from sdengine.adapters.adapter import Adapter, read_adapter
from sdengine.adapters.changes import merged
from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.unet import UNet2DConditionModel

peft: Any = pytest.importorskip("peft", reason="peft is not installed")
TARGETS = ["to_k", "to_out.0", "proj_in", "conv1"]


def theirs(name: str) -> Any:
    """Return diffusers' U-Net of a tiny architecture."""
    from diffusers import UNet2DConditionModel as Diffusers

    ours = UNet2DConditionModel(TINY[name].unet)
    seed_weights(ours, seed=5)
    unet = Diffusers.from_config(TINY[name].unet.to_dict())
    unet.load_state_dict(ours.state_dict())
    return unet.eval().requires_grad_(False)


def weights_of(unet: Any) -> dict[str, Array]:
    """Return weights by the names that they have without PEFT's layers around them."""
    return {
        name.replace(".base_layer.", "."): tensor.detach().numpy().copy()
        for name, tensor in unet.state_dict().items()
        if not any(mark in name for mark in ("lora_", "hada_", "lokr_", "ia3_"))
    }


def seed(module: Any) -> None:
    """Give an adapter's parameters numbers that are not those of its beginning."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(mark in name for mark in ("lora_", "hada_", "lokr_", "ia3_")):
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                is_factor = "magnitude" in name or "ia3" in name
                parameter.copy_(parameter * (1 + noise) if is_factor else noise)


def merged_unet(name: str, weights: dict[str, Array], adapter: Adapter, strength: float) -> Any:
    """Return our U-Net with an adapter merged into it."""
    changes = {change.parameter: change for change in adapter.changes["unet"]}
    state = {
        parameter: merged(weight, [(changes[parameter], strength)] if parameter in changes else [])
        for parameter, weight in weights.items()
    }
    unet = UNet2DConditionModel(TINY[name].unet).eval()
    unet.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return unet


def predictions(name: str, one: Any, other: Any) -> tuple[Array, Array]:
    config = TINY[name].unet
    torch.manual_seed(0)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, config.cross_attention_dim)
    timestep, added = torch.tensor([500]), {}
    if config.addition_embed_type:
        added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.ones(1, 6)}
        width = config.projection_class_embeddings_input_dim
        assert width is not None and config.addition_time_embed_dim is not None
        added["text_embeds"] = torch.randn(1, width - 6 * config.addition_time_embed_dim)
    with torch.no_grad():
        wanted = one(latents, timestep, text, added_cond_kwargs=added).sample
        found = other(latents, timestep.float(), text, **added)
    return found.numpy(), wanted.numpy()


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "init_lora_weights": False}),
    "rsLoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "mixed ranks": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"conv1": 3}},
    ),
    "DoRA": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True}),
    "LoHa": ("LoHaConfig", {"r": 4, "alpha": 6}),
    "LoHa, cores": ("LoHaConfig", {"r": 4, "alpha": 6, "use_effective_conv2d": True}),
    "LoKr": ("LoKrConfig", {"r": 4, "alpha": 6}),
    "LoKr, both low": ("LoKrConfig", {"r": 2, "alpha": 6, "decompose_both": True}),
    "LoKr, cores": (
        "LoKrConfig",
        {"r": 2, "alpha": 6, "use_effective_conv2d": True, "decompose_factor": 2},
    ),
    "LoKr, whole": ("LoKrConfig", {"r": 1000, "alpha": 500}),
    "IA3": ("IA3Config", {"feedforward_modules": ["to_out.0"]}),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_saves_changes_weights_as_peft_merges_them(tmp_path: Path, kind: str) -> None:
    class_name, options = CONFIGS[kind]
    targets = ["to_q", "to_k", "to_out.0"] if kind == "IA3" else TARGETS
    config = getattr(peft, class_name)(target_modules=targets, **options)
    unet = theirs("tiny")
    before = weights_of(unet)
    model = peft.get_peft_model(unet, config)
    seed(model)
    model.save_pretrained(tmp_path / "saved")
    model.double()  # so that the reference is not rounded itself
    adapter = read_adapter(tmp_path / "saved", tiny_modules("tiny"))
    assert not adapter.unknown and adapter.name == "saved"
    changes = {change.parameter: change for change in adapter.changes["unet"]}
    wrapped = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "base_layer")}
    deltas = {f"{name}.weight": layer for name, layer in wrapped.items()}
    if kind not in ("DoRA", "IA3"):  # which have no difference by itself
        assert deltas.keys() == changes.keys()
        for name, layer in deltas.items():
            wanted = layer.get_delta_weight("default").detach().numpy()
            found = changes[name].difference.of(before[name])
            assert_close("adapter", "float32", found.reshape(wanted.shape), wanted)
    after = weights_of(model.merge_and_unload())
    for name, weight in before.items():
        if name in changes:
            found = merged(weight, [(changes[name], 1.0)])
            assert_close("weight with a LoRA", "float32", found, after[name])
            assert not np.array_equal(found, weight), name
        else:
            assert np.array_equal(after[name], weight), name
    kinds = {"mixed ranks": {"LoRA", "LoCon"}, "LoRA": {"LoRA", "LoCon"}, "IA3": {"IA3"}}
    assert set(adapter.kinds) == kinds.get(kind, set(adapter.kinds))


@pytest.mark.parametrize(("name", "form"), [("tiny", "diffusers"), ("tiny-sdxl", "kohya")])
def test_a_unet_with_a_lora_predicts_what_diffusers_predicts(
    tmp_path: Path, name: str, form: str
) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    unet = theirs(name)
    before = weights_of(unet)
    pipeline: Any = StableDiffusionXLPipeline if name == "tiny-sdxl" else StableDiffusionPipeline
    if form == "diffusers":
        config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS)
        trained = theirs(name)
        trained.add_adapter(config)
        seed(trained)
        layers = peft.get_peft_model_state_dict(trained)
        settings = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
        pipeline.save_lora_weights(
            tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=settings
        )
        path = tmp_path / "pytorch_lora_weights.safetensors"
    else:
        path = write(tmp_path / "kohya.safetensors", kohya(name))
    adapter = read_adapter(path, tiny_modules(name))
    state, alphas, *metadata = pipeline.lora_state_dict(
        path, unet_config=unet.config, return_lora_metadata=True
    )
    pipeline.load_lora_into_unet(state, alphas, unet, metadata=metadata[0] if metadata else None)
    unet.fuse_lora(lora_scale=0.7)
    ours = merged_unet(name, before, adapter, 0.7)
    found, wanted = predictions(name, unet, ours)
    without, _ = predictions(name, unet, merged_unet(name, before, adapter, 0.0))
    assert_close("unet with a LoRA", "float32", found, wanted)
    assert np.abs(without - wanted).max() > 0.01
    for parameter, weight in weights_of(unet).items():
        mine = ours.state_dict()[parameter].numpy()
        assert_close("weight with a LoRA", "float32", mine, weight)


def kohya(name: str) -> dict[str, Array]:
    """Return a LoRA of every attention: under diffusers' names, for XL under the original ones."""
    from sdengine.adapters.original_names import unet_paths

    paths = [
        parameter.removesuffix(".weight")
        for parameter in tiny_shapes(name)["unet"]
        if parameter.endswith((".to_q.weight", ".to_k.weight", ".to_out.0.weight", ".proj.weight"))
    ]
    original = unet_paths({p.rpartition(".")[0] for p in tiny_shapes(name)["unet"]})
    tensors = {}
    for number, path in enumerate(paths):
        out, inner = shape_of(path, name)
        stem = flat(original[path] if name == "tiny-sdxl" else path)
        tensors[f"{stem}.lora_down.weight"] = draw(4, inner, seed=number)
        tensors[f"{stem}.lora_up.weight"] = draw(out, 4, seed=number + 1000)
        tensors[f"{stem}.alpha"] = np.asarray(2.0, np.float32)
    return tensors


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_text_encoders_with_a_lora_of_peft(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = TINY["tiny"].text_encoder
    encoder = CLIPTextModel(CLIPTextConfig(**config.to_dict())).eval()
    lora = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "fc1", "out_proj"])
    before = weights_of(encoder)
    model = peft.get_peft_model(encoder, lora)
    seed(model)
    state = {
        "text_encoder." + key.removeprefix("base_model.model."): value.numpy()
        for key, value in peft.get_peft_model_state_dict(model).items()
    }
    told = {"text_encoder.r": 4, "text_encoder.lora_alpha": 6}
    adapter = read(tmp_path, state, {"lora_adapter_metadata": json.dumps(told)})
    after = weights_of(model.merge_and_unload())
    assert len(adapter.changes["text_encoder"]) == 3 * config.num_hidden_layers
    for change in adapter.changes["text_encoder"]:
        short = change.parameter.removeprefix("text_model.")
        key = change.parameter if change.parameter in after else short
        found = merged(before[key], [(change, 1.0)])
        assert_close("weight with a LoRA", "float32", found, after[key])
        assert not np.array_equal(found, before[key])
