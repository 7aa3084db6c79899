"""The U-Nets and ControlNets against diffusers', on equal weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from support.tiny_architectures import TINY_SD15, TINY_SD21, TINY_SDXL
from tolerances import assert_close

from sdengine.checkpoints.synthetic import seed_weights
from sdengine.models.attention import set_attention_impl
from sdengine.models.configs import SD15, SD21, SDXL, ModelArchitecture
from sdengine.models.controlnet import ControlNetConfig, ControlNetModel
from sdengine.models.unet import UNet2DConditionModel, UNetConfig

TINY = [TINY_SD15, TINY_SD21, TINY_SDXL]
# Odd uses of the same configuration: other channels, another number of levels, LCM's condition.
VARIANTS = {
    "inpainting": replace(TINY_SD15.unet, in_channels=9),
    "one-layer": replace(TINY_SD15.unet, layers_per_block=1),
    "three-layers": replace(TINY_SD21.unet, layers_per_block=3),
    "lcm": replace(TINY_SD15.unet, time_cond_proj_dim=12),
    "refiner": replace(
        TINY_SDXL.unet,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=2,
        projection_class_embeddings_input_dim=24 + 5 * 8,
    ),
    # Distilled: less of a middle, layers and transformer blocks by level or by layer.
    "no-middle": replace(TINY_SD15.unet, layers_per_block=1, mid_block_type=None),
    "layers-by-level": replace(TINY_SD15.unet, layers_per_block=(1, 2, 3, 1)),
    "blocks-by-layer": replace(
        TINY_SDXL.unet,
        transformer_layers_per_block=(1, (2, 2), (4, 3)),
        reverse_transformer_layers_per_block=((4, 4, 5), (2, 1, 1), 1),
        mid_block_type="UNetMidBlock2D",
    ),
    "blocks-reversed": replace(
        TINY_SDXL.unet,
        transformer_layers_per_block=(1, 2, (3, 1)),
        reverse_transformer_layers_per_block=(2, (3, 1, 1), 1),
    ),
}


def inputs(config: UNetConfig, time_id_count: int = 6) -> dict[str, torch.Tensor]:
    """Make seeded inputs for two images of 8 by 16 cells."""
    g = torch.Generator().manual_seed(3)
    made = {
        "sample": torch.randn(2, config.in_channels, 8, 16, generator=g),
        "timestep": torch.tensor([999.0, 20.5]),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, generator=g),
    }
    if config.addition_embed_type == "text_time":
        made["text_embeds"] = torch.randn(2, 24, generator=g)
        made["time_ids"] = torch.tensor([[64.0, 128, 0, 8, 64, 128], [32, 64, 0, 0, 64, 128]])
        made["time_ids"] = made["time_ids"][:, :time_id_count]
    return made


def for_diffusers(made: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Pass the same inputs under diffusers' names."""
    added = {k: v for k, v in made.items() if k in ("text_embeds", "time_ids")}
    rest = {k: v for k, v in made.items() if k not in added}
    return {**rest, "added_cond_kwargs": added or None}


def pair(config: UNetConfig) -> tuple[UNet2DConditionModel, Any]:
    """Build ours and diffusers' with equal weights."""
    ours = UNet2DConditionModel(config).eval()
    seed_weights(ours, seed=2)
    theirs = diffusers.UNet2DConditionModel.from_config(config.to_dict()).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("impl", ["sdpa", "plain"])
@pytest.mark.parametrize("family", TINY, ids=lambda family: family.name)
@torch.no_grad()
def test_unet_predicts_the_same(family: ModelArchitecture, impl: str) -> None:
    ours, theirs = pair(family.unet)
    set_attention_impl(ours, impl)
    made = inputs(family.unet)
    assert_close("unet", "float32", ours(**made), theirs(**for_diffusers(made)).sample)


@pytest.mark.parametrize("name", sorted(VARIANTS))
@torch.no_grad()
def test_variants_predict_the_same(name: str) -> None:
    config = VARIANTS[name]
    ours, theirs = pair(config)
    made = inputs(config, time_id_count=5 if name == "refiner" else 6)
    if config.time_cond_proj_dim:
        made["timestep_cond"] = torch.linspace(-1, 1, 24).reshape(2, 12)
    assert_close("unet", "float32", ours(**made), theirs(**for_diffusers(made)).sample)


@pytest.mark.parametrize("family", TINY, ids=lambda family: family.name)
@torch.no_grad()
def test_controlnet_and_the_unet_that_reads_it(family: ModelArchitecture) -> None:
    config = family.controlnet
    ours = ControlNetModel(config).eval()
    seed_weights(ours, seed=4)
    theirs = diffusers.ControlNetModel.from_config(config.to_dict()).eval()
    theirs.load_state_dict(ours.state_dict())
    made = inputs(family.unet)
    image = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(5))

    down, mid = ours(**made, controlnet_cond=image)
    expected = theirs(**for_diffusers(made), controlnet_cond=image)
    assert len(down) == len(family.unet.residual_channels)
    for residual, wanted in zip(down, expected.down_block_res_samples, strict=True):
        assert_close("controlnet", "float32", residual, wanted)
    assert_close("controlnet", "float32", mid, expected.mid_block_res_sample)

    unet, their_unet = pair(family.unet)
    steered = unet(**made, down_residuals=down, mid_residual=mid)
    wanted = their_unet(
        **for_diffusers(made),
        down_block_additional_residuals=expected.down_block_res_samples,
        mid_block_additional_residual=expected.mid_block_res_sample,
    ).sample
    assert_close("unet", "float32", steered, wanted)
    assert not torch.allclose(steered, unet(**made))


@torch.no_grad()
def test_an_untrained_controlnet_leaves_the_unet_as_it_is() -> None:
    controlnet = ControlNetModel(TINY_SD15.controlnet).eval()
    made = inputs(TINY_SD15.unet)
    down, mid = controlnet(**made, controlnet_cond=torch.rand(2, 3, 64, 128))
    assert all(not residual.any() for residual in (*down, mid))


@pytest.mark.parametrize(
    ("family", "count"),
    [(SD15, 859_520_964), (SD21, 865_910_724), (SDXL, 2_567_463_684)],
    ids=["sd15", "sd21", "sdxl"],
)
def test_full_size_unet_has_the_published_names_shapes_and_count(
    family: ModelArchitecture, count: int
) -> None:
    with torch.device("meta"):
        ours = UNet2DConditionModel(family.unet)
        theirs = diffusers.UNet2DConditionModel.from_config(family.unet.to_dict())
    assert sum(p.numel() for p in ours.parameters()) == count
    assert shapes(ours) == shapes(theirs)


def test_full_size_controlnet_has_the_published_names_shapes_and_count() -> None:
    with torch.device("meta"):
        ours = ControlNetModel(SD15.controlnet)
        theirs = diffusers.ControlNetModel.from_config(SD15.controlnet.to_dict())
    assert sum(p.numel() for p in ours.parameters()) == 361_279_120
    assert shapes(ours) == shapes(theirs)


def test_configs_survive_their_own_json() -> None:
    for family in (SD15, SD21, SDXL, *TINY):
        assert UNetConfig.from_dict(family.unet.to_dict()) == family.unet
        read = ControlNetConfig.from_dict(family.controlnet.to_dict())
        assert read.to_dict() == family.controlnet.to_dict()


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every tensor by name."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
