"""Where each weight of our networks is in a single file with the original names.

Single files carry the names of the code that published the models: "model.diffusion_model." for the
U-Net, "first_stage_model." for the autoencoder, "cond_stage_model." or "conditioner.embedders." for
text encoders. The names follow from the configuration, so they are computed, not listed.

Source: the state dictionaries of latent-diffusion, generative-models and open_clip checkpoints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNetConfig
from sdengine.models.vae import VAEConfig

UNET, VAE = "model.diffusion_model.", "first_stage_model."


@dataclass(frozen=True)
class Place:
    """A weight's name in the file and what is taken of it.

    Args:
        name: in the file.
        third: which third of its rows, where query, key and value lie in one; None for all.
        transposed: the file holds it the other way round.
    """

    name: str
    third: int | None = None
    transposed: bool = False


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "time_embedding.cond_proj.": "time_embed.cond_proj.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
}


def unet_place(name: str, config: UNetConfig) -> Place:
    """Return where a weight of the U-Net is."""
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(ours):
            return Place(UNET + theirs + name.removeprefix(ours))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
        assert middle is not None, name
        kind, index, rest = middle.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return Place(f"{UNET}middle_block.{place}.{_inside(kind, rest)}")
    way, level, kind, index, rest = match.groups()
    at = int(level) if way == "down" else len(config.num_layers) - 1 - int(level)
    layers = config.num_layers[at]
    if way == "down":
        block = 1 + sum(config.num_layers[:at]) + at
        if kind == "downsamplers":
            inside = rest.replace("conv.", "op.", 1)
            return Place(f"{UNET}input_blocks.{block + layers}.0.{inside}")
        place = 1 if kind == "attentions" else 0
        return Place(f"{UNET}input_blocks.{block + int(index)}.{place}.{_inside(kind, rest)}")
    block = sum(config.num_layers[at + 1 :]) + int(level)
    attends = config.up_block_types[int(level)] == "CrossAttnUpBlock2D"
    if kind == "upsamplers":
        return Place(f"{UNET}output_blocks.{block + layers}.{1 + attends}.{rest}")
    place = 1 if kind == "attentions" else 0
    return Place(f"{UNET}output_blocks.{block + int(index)}.{place}.{_inside(kind, rest)}")


def _inside(kind: str, rest: str) -> str:
    if kind != "resnets":
        return rest
    head, _, tail = rest.partition(".")
    return f"{_RESNET[head]}.{tail}"


def control_place(name: str, config: UNetConfig) -> str:
    """Return what the original implementation calls a weight of a ControlNet, without prefix."""
    middle = re.fullmatch(r"controlnet_mid_block\.(\w+)", name)
    if middle is not None:
        return f"middle_block_out.0.{middle[1]}"
    zero = re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(\w+)", name)
    if zero is not None:
        return f"zero_convs.{zero[1]}.0.{zero[2]}"
    hint = re.fullmatch(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d+))\.(\w+)", name)
    if hint is not None:
        layers = {"conv_in": 0, "conv_out": 14}  # four widths, and activations between all layers
        number = layers[hint[1]] if hint[2] is None else 2 + 2 * int(hint[2])
        return f"input_hint_block.{number}.{hint[3]}"
    return unet_place(name, config).name.removeprefix(UNET)


_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def vae_place(name: str, config: VAEConfig, prefix: str = VAE) -> Place:
    """Return where a weight of the autoencoder is."""
    half, _, rest = name.partition(".")
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest)
    if match is not None:
        way, level, kind, index, inside = match.groups()
        if way == "up":  # numbered from the finest level in the file
            level = str(len(config.block_out_channels) - 1 - int(level))
        if kind in ("downsamplers", "upsamplers"):
            return Place(f"{prefix}{half}.{way}.{level}.{way}sample.{inside}")
        inside = inside.replace("conv_shortcut.", "nin_shortcut.")
        return Place(f"{prefix}{half}.{way}.{level}.block.{index}.{inside}")
    middle = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", rest)
    if middle is not None:
        kind, index, inside = middle.groups()
        if kind == "resnets":
            return Place(f"{prefix}{half}.mid.block_{int(index) + 1}.{inside}")
        head, _, tail = inside.rpartition(".")
        return Place(f"{prefix}{half}.mid.attn_1.{_VAE_ATTENTION[head]}.{tail}")
    return Place(prefix + name.replace(".conv_norm_out.", ".norm_out."))


_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def text_place(name: str, config: TextEncoderConfig, prefix: str) -> Place:
    """Return where a weight of a text encoder is.

    Args:
        name: ours.
        config: of the text encoder.
        prefix: ends in "transformer." for CLIP in transformers' names, in "model." for OpenCLIP.
    """
    if prefix.endswith("transformer."):
        return Place(prefix + name)
    if name == "text_projection.weight":
        return Place(f"{prefix}text_projection", transposed=True)
    if name in _OPEN_CLIP_ENDS:
        return Place(prefix + _OPEN_CLIP_ENDS[name])
    match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    assert match is not None, name
    layer, inside, kind = match.groups()
    block = f"{prefix}transformer.resblocks.{layer}."
    fused = re.fullmatch(r"self_attn\.([qkv])_proj", inside)
    if fused is not None:
        return Place(f"{block}attn.in_proj_{kind}", third="qkv".index(fused[1]))
    return Place(f"{block}{_OPEN_CLIP_LAYER[inside]}.{kind}")
