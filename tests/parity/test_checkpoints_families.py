"""Every family at its published size: names, shapes and counts are those of the oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from support.single_files import empty_modules_of, full_size_shapes, write_sparse
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdengine.checkpoints import load_checkpoint
from sdengine.checkpoints.checkpoint import family_of
from sdengine.errors import CheckpointError
from sdengine.models.configs import ARCHITECTURES, ModelArchitecture

PUBLISHED = ("sd15", "sd21", "sdxl", "sdxl-refiner", "lcm")
# Parameters of the published networks.
COUNTS = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sdxl-refiner": {"text_encoder_2": 694_659_840},
}
VAE_COUNT = 83_653_863


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def oracles_of(family: ModelArchitecture) -> dict[str, Any]:
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(family.unet.to_dict()),
            "vae": AutoencoderKL.from_config(family.vae.to_dict()),
        }
        for part, config in zip(family.text_parts, family.text_encoders, strict=True):
            kind = CLIPTextModelWithProjection if config.with_projection else CLIPTextModel
            networks[part] = kind(CLIPTextConfig(**config.to_dict()))
    return networks


@pytest.fixture(scope="module", params=PUBLISHED)
def family(request: pytest.FixtureRequest) -> ModelArchitecture:
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def single_file(family: ModelArchitecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / f"{family.name}.safetensors"
    return write_sparse(path, full_size_shapes(family))


def test_networks_have_the_oracles_names_shapes_and_counts(family: ModelArchitecture) -> None:
    ours = empty_modules_of(family)
    for part, oracle in oracles_of(family).items():
        expected = shapes_of(oracle)
        if part.startswith("text_encoder"):  # recent versions leave the prefix out
            expected = {
                name if name.startswith("text_") else f"text_model.{name}": shape
                for name, shape in expected.items()
                if not name.endswith("position_ids")
            }
        assert shapes_of(ours[part]) == expected, part
    counts = {part: sum(p.numel() for p in m.parameters()) for part, m in ours.items()}
    for part, count in {**COUNTS.get(family.name, {}), "vae": VAE_COUNT}.items():
        assert counts[part] == count, part


def test_a_published_single_file_says_what_it_is(
    family: ModelArchitecture, single_file: Path
) -> None:
    opened = load_checkpoint(single_file)
    assert opened.family == family_of(family)
    assert opened.unet_config == family.unet
    assert opened.vae_config == family.vae
    assert tuple(opened.text_encoder_configs.values()) == family.text_encoders
    assert tuple(opened.text_encoder_configs) == family.text_parts
    assert tuple(opened.pad_tokens.values()) == family.pad_tokens
    assert opened.scheduler_config["prediction_type"] == family.prediction_type
    assert opened.requires_aesthetic_score == family.requires_aesthetic_score
    assert opened.zero_empty_negative == (family.name == "sdxl")


def test_every_tensor_of_a_published_single_file_has_its_place(
    family: ModelArchitecture, single_file: Path
) -> None:
    opened = load_checkpoint(single_file)
    for part in opened.parts:
        first = next(opened.tensors(part))  # asking for the first checks names and shapes of all
        assert tuple(first[1].shape) == opened.shapes(part)[first[0]]


def test_diffusers_gives_the_same_names_to_a_published_single_file(
    family: ModelArchitecture,
) -> None:
    state = {n: torch.empty(s, device="meta") for n, s in full_size_shapes(family).items()}
    modules = empty_modules_of(family)
    config = {**family.unet.to_dict(), "class_embed_type": None}
    found = theirs.convert_ldm_unet_checkpoint(dict(state), config)
    # Their converter knows no guidance embedding.
    expected = {n: s for n, s in shapes_of(modules["unet"]).items() if ".cond_proj." not in n}
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == expected
    found = theirs.convert_ldm_vae_checkpoint(state, family.vae.to_dict())
    squeezed = {n: tuple(t.shape[:2] if "attentions" in n else t.shape) for n, t in found.items()}
    assert squeezed == shapes_of(modules["vae"])


@pytest.mark.parametrize(
    ("name", "metadata", "extra", "expected"),
    [
        ("sd21", {}, {}, "v_prediction"),
        ("sd21", {"modelspec.architecture": "stable-diffusion-v2-512"}, {}, "epsilon"),
        ("sd21", {"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ("sdxl", {"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ("sdxl", {}, {"v_pred": ()}, "v_prediction"),
        ("sd15", {}, {"ztsnr": ()}, "v_prediction"),
    ],
)
def test_what_a_file_predicts(
    tmp_path: Path,
    name: str,
    metadata: dict[str, str],
    extra: dict[str, tuple[int, ...]],
    expected: str,
) -> None:
    shapes = {**full_size_shapes(ARCHITECTURES[name]), **extra}
    path = write_sparse(tmp_path / "model.safetensors", shapes, metadata=metadata)
    opened = load_checkpoint(path)
    assert opened.scheduler_config["prediction_type"] == expected
    assert opened.scheduler_config.get("rescale_betas_zero_snr", False) == ("ztsnr" in extra)
    assert opened.unet_config.sample_size == (
        {"v_prediction": 96, "epsilon": 64}[expected]
        if name == "sd21"
        else ARCHITECTURES[name].unet.sample_size
    )


@pytest.mark.parametrize(("channels", "name"), [(9, "sd15"), (9, "sdxl"), (5, "sd21"), (8, "sd15")])
def test_input_channels_are_read_off(tmp_path: Path, channels: int, name: str) -> None:
    shapes = full_size_shapes(ARCHITECTURES[name])
    first = "model.diffusion_model.input_blocks.0.0.weight"
    shapes[first] = (shapes[first][0], channels, 3, 3)
    opened = load_checkpoint(write_sparse(tmp_path / "model.safetensors", shapes))
    assert opened.unet_config.in_channels == channels
    assert opened.scheduler_config["prediction_type"] == "epsilon"
    next(opened.tensors("unet"))


def test_a_file_without_an_autoencoder_takes_one_of_its_family(tmp_path: Path) -> None:
    shapes = full_size_shapes(ARCHITECTURES["sdxl"])
    vae = "first_stage_model."
    alone = write_sparse(
        tmp_path / "vae.safetensors", {n: s for n, s in shapes.items() if n.startswith(vae)}
    )
    rest = {name: shape for name, shape in shapes.items() if not name.startswith(vae)}
    path = write_sparse(tmp_path / "model.safetensors", rest)
    opened = load_checkpoint(path, vae=alone)
    assert opened.vae_config == ARCHITECTURES["sdxl"].vae
    next(opened.tensors("vae"))
    with pytest.raises(CheckpointError, match="separate autoencoder"):
        load_checkpoint(path).vae()
