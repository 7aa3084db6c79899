"""Configurations come from checkpoints, so anything may be in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_architectures import TINY_SDXL

from sdengine.errors import ConfigError
from sdengine.models.configs import ModelArchitecture
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel
from sdengine.models.text_encoder import TextEncoderConfig
from sdengine.models.unet import UNet2DConditionModel, UNetConfig
from sdengine.models.vae import AutoencoderKL, VAEConfig

NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (UNetConfig, TINY_SDXL.unet),
    "vae": (VAEConfig, TINY_SDXL.vae),
    "text_encoder": (TextEncoderConfig, TINY_SDXL.text_encoder),
    "controlnet": (ControlNetConfig, TINY_SDXL.controlnet),
}


MODULES: dict[str, Any] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "controlnet": ControlNetModel,
}


@pytest.mark.parametrize(
    ("network", "field", "value"),
    [
        ("unet", "block_out_channels", "wide"),
        ("unet", "down_block_types", ["DownBlock2D"]),
        ("unet", "block_out_channels", [16, 32, 1 << 30]),
        ("unet", "block_out_channels", [16, 32, 50]),
        ("unet", "block_out_channels", []),
        ("unet", "norm_num_groups", 0),
        ("unet", "attention_head_dim", [2, 4]),
        ("unet", "layers_per_block", 10**9),
        ("unet", "layers_per_block", [1, 2]),
        ("unet", "layers_per_block", 0),
        ("unet", "transformer_layers_per_block", [1, [2, 2], 3]),
        ("unet", "reverse_transformer_layers_per_block", [[1, 1], 2, 1]),
        ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("unet", "only_cross_attention", [False, True, False]),
        ("unet", "time_embedding_dim", 65),
        ("unet", "block_out_channels", [15, 30, 45]),
        ("unet", "down_block_types", ["AttnDownBlock2D"] * 3),
        ("unet", "addition_embed_type", "image"),
        ("unet", "addition_time_embed_dim", None),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "num_attention_heads", 8),
        ("unet", "norm_eps", float("nan")),
        ("unet", "use_linear_projection", 1),
        ("vae", "norm_num_groups", 0),
        ("vae", "block_out_channels", [8.0, 16, 16, 16]),
        ("vae", "mid_block_add_attention", False),
        ("vae", "down_block_types", ["AttnDownEncoderBlock2D"] * 4),
        ("vae", "latents_mean", [0.1] * 4),
        ("vae", "scaling_factor", 0.0),
        ("vae", "scaling_factor", "0.18215"),
        ("text_encoder", "hidden_act", "relu"),
        ("text_encoder", "num_attention_heads", 0),
        ("text_encoder", "num_attention_heads", 5),
        ("text_encoder", "num_hidden_layers", -1),
        ("text_encoder", "model_type", "t5"),
        ("controlnet", "conditioning_embedding_out_channels", []),
        ("controlnet", "conditioning_channels", 0),
        ("controlnet", "controlnet_conditioning_channel_order", "bgr"),
        ("controlnet", "down_block_types", 3),
    ],
)
def test_a_bad_value_is_named(network: str, field: str, value: Any) -> None:
    config_class, good = NETWORKS[network]
    with pytest.raises(ConfigError, match=field):
        config_class.from_dict({**good.to_dict(), field: value})


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_keys_that_change_nothing_are_ignored(network: str) -> None:
    config_class, good = NETWORKS[network]
    harmless = {"_diffusers_version": "0.6", "of_another_release": None}
    assert config_class.from_dict({**good.to_dict(), **harmless}) == config_class.from_dict(
        good.to_dict()
    )


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_key_that_nobody_knows_is_refused(network: str) -> None:
    config_class, good = NETWORKS[network]
    with pytest.raises(ConfigError, match=r"of_another_release: True.*take it out"):
        config_class.from_dict({**good.to_dict(), "of_another_release": True})


def test_a_missing_key_is_what_the_library_assumes() -> None:
    text = {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"]}
    read = TextEncoderConfig.from_dict(text)
    assert (read.hidden_size, read.num_attention_heads, read.projection_dim) == (512, 8, 512)
    assert UNetConfig.from_dict({}).cross_attention_dim == 1280
    assert VAEConfig.from_dict({}).block_out_channels == (64,)
    with pytest.raises(ConfigError, match="down_block_types"):
        VAEConfig.from_dict({"down_block_types": ["AttnDownEncoderBlock2D"]})


SPELLED = [
    ("unet", "only_cross_attention", [False, False, False]),
    ("unet", "layers_per_block", [2, 2, 2]),
    ("unet", "cross_attention_dim", [64, 64, 64]),
    ("unet", "sample_size", [8, 8]),
    ("unet", "act_fn", "swish"),
    ("unet", "time_embedding_dim", 64),
    ("unet", "resnet_out_scale_factor", 1),
    ("unet", "reverse_transformer_layers_per_block", None),
    ("unet", "mid_block_type", "UNetMidBlock2DCrossAttn"),
    ("vae", "shift_factor", 0.0),
    ("vae", "latents_mean", None),
    ("vae", "use_quant_conv", True),
    ("vae", "down_block_types", ["DownEncoderBlock2D"] * 4),
    ("controlnet", "only_cross_attention", [False, False, False]),
]


@pytest.mark.parametrize(("network", "field", "value"), SPELLED)
def test_other_spellings_of_the_default_are_accepted(network: str, field: str, value: Any) -> None:
    config_class, good = NETWORKS[network]
    with torch.device("meta"):
        read = config_class.from_dict({**good.to_dict(), field: value})
        found = MODULES[network](read).state_dict()
        expected = MODULES[network](config_class.from_dict(good.to_dict())).state_dict()
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}


def test_families_are_complete() -> None:
    assert isinstance(TINY_SDXL, ModelArchitecture)
    assert len(TINY_SDXL.text_encoders) == len(TINY_SDXL.pad_tokens) == 2
    joined = sum(config.hidden_size for config in TINY_SDXL.text_encoders)
    assert joined == TINY_SDXL.unet.cross_attention_dim


def test_networks_without_weights_are_made_without_torchs_compiler(tmp_path: Path) -> None:
    """Its import takes seconds, which every command that reads a checkpoint would spend."""
    program = (
        "import sys\n"
        "import torch\n"
        "from sdengine.models.configs import ARCHITECTURES\n"
        "from sdengine.models.image_encoder import CLIPImageEncoder, ImageEncoderConfig\n"
        "from sdengine.models.text_encoder import CLIPTextEncoder\n"
        "from sdengine.models.unet import UNet2DConditionModel\n"
        "from sdengine.models.vae import AutoencoderKL\n"
        "sizes = ARCHITECTURES['sdxl']\n"
        "with torch.device('meta'):\n"
        "    made = [UNet2DConditionModel(sizes.unet), AutoencoderKL(sizes.vae),\n"
        "            CLIPTextEncoder(sizes.text_encoder),\n"
        "            CLIPImageEncoder(ImageEncoderConfig(patch_size=14))]\n"
        "assert all(p.is_meta and p.requires_grad for one in made for p in one.parameters())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
