"""Checkpoints on disk: what is written is read back, and damage is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_folders import TEXT, UNET, VAE, edit_json, edit_weights
from support.readable_architectures import READABLE_SD15
from support.single_files import modules_of, original_state
from support.tiny_checkpoints import make_tiny

from sdengine.checkpoints import load_checkpoint, save_checkpoint
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.errors import CheckpointError, ConfigError, OutputError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("tiny", tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "copy")


def load_all(folder: Path) -> None:
    opened = load_checkpoint(folder)
    opened.text_encoder()
    opened.unet()
    opened.vae()
    opened.tokenizer_files()


def test_weights_survive_a_round_trip_exactly(checkpoint: Path, tmp_path: Path) -> None:
    first = load_checkpoint(checkpoint)
    again = save_checkpoint(
        tmp_path / "again",
        unet=first.unet(),
        vae=first.vae(),
        text_encoder=first.text_encoder(),
        tokenizer_dir=checkpoint / "tokenizer",
        scheduler_config=first.scheduler_config,
    )
    for name in (UNET, VAE, TEXT):
        ours, theirs = load_file(checkpoint / name), load_file(again / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        assert {t.dtype for t in theirs.values()} == {torch.float16}
    assert load_checkpoint(again).sha256 == first.sha256


def test_synthetic_weights_depend_on_the_seed_alone(checkpoint: Path, tmp_path: Path) -> None:
    same = load_checkpoint(make_tiny("tiny", tmp_path / "same"))
    other = load_checkpoint(make_tiny("tiny", tmp_path / "other", seed=1))
    assert load_checkpoint(checkpoint).sha256 == same.sha256 != other.sha256


def test_networks_come_in_the_dtype_asked_for(checkpoint: Path) -> None:
    opened = load_checkpoint(checkpoint)
    unet = opened.unet(torch.bfloat16)
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert not unet.training
    assert not any(p.requires_grad for p in unet.parameters())
    assert opened.family == "sd1"
    assert opened.pad_tokens == {"text_encoder": "<|endoftext|>"}


def test_sd2_is_told_apart_and_pads_otherwise(tmp_path: Path) -> None:
    opened = load_checkpoint(make_tiny("tiny-sd21", tmp_path / "sd2"))
    assert opened.family == "sd2"
    assert opened.pad_tokens == {"text_encoder": "!"}
    assert opened.scheduler_config["prediction_type"] == "v_prediction"


def test_old_names_are_understood(copy: Path) -> None:
    def rename_vae(state: dict[str, Any]) -> None:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [n for n in state if ".attentions." in n]:
            for new, before in old.items():
                if f".{new}." in name:
                    state[name.replace(f".{new}.", f".{before}.")] = state.pop(name)

    def rename_text(state: dict[str, Any]) -> None:
        for name in list(state):
            state[name.removeprefix("text_model.")] = state.pop(name)
        state["embeddings.position_ids"] = torch.arange(77)[None]

    edit_weights(copy / VAE, rename_vae)
    edit_weights(copy / TEXT, rename_text)
    load_all(copy)


def test_sharded_weights_are_joined(copy: Path) -> None:
    state = load_file(copy / UNET)
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, kept in shards.items():
        save_file({n: state[n] for n in kept}, copy / "unet" / file)
    weight_map = {n: file for file, kept in shards.items() for n in kept}
    index = copy / f"{UNET}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (copy / UNET).unlink()
    load_all(copy)

    weight_map[names[0]] = "../vae/diffusion_pytorch_model.safetensors"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="not a file name"):
        load_all(copy)


@pytest.mark.parametrize("kept_bytes", [0, 7, 8, 100, 5000, -1])
@pytest.mark.parametrize("name", [UNET, TEXT])
def test_a_truncated_file_is_named(copy: Path, name: str, kept_bytes: int) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:kept_bytes])
    with pytest.raises(CheckpointError, match=Path(name).name):
        load_all(copy)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        (1 << 62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"nope",
    ],
)
def test_a_hostile_header_is_refused(copy: Path, header: bytes) -> None:
    (copy / UNET).write_bytes(header)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_all(copy)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 60]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "EVIL", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    ],
)
def test_hostile_offsets_and_sizes_are_refused(copy: Path, entry: dict[str, Any]) -> None:
    header = json.dumps({"conv_in.weight": entry}).encode()
    (copy / UNET).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_all(copy)


def test_overlapping_tensors_are_refused(copy: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (copy / UNET).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_all(copy)


def test_missing_extra_and_misshapen_tensors_are_named(copy: Path) -> None:
    name = "down_blocks.0.resnets.0.conv1.weight"
    edit_weights(copy / UNET, lambda s: s.update({name: s[name][:, :3].contiguous()}))
    with pytest.raises(CheckpointError, match=rf"{name}.*\[16, 3, 3, 3\].*\[16, 16, 3, 3\]"):
        load_all(copy)
    edit_weights(copy / UNET, lambda s: s.update({name: torch.zeros(16, 16, 3, 3).long()}))
    with pytest.raises(CheckpointError, match=rf"{name}.*I64"):
        load_all(copy)
    edit_weights(copy / UNET, lambda s: s.pop(name))
    with pytest.raises(CheckpointError, match=f"1 of .* missing, first '{name}'"):
        load_all(copy)
    added = {name: torch.zeros(16, 16, 3, 3), "x": torch.zeros(1)}
    edit_weights(copy / UNET, lambda s: s.update(added))
    with pytest.raises(CheckpointError, match=r"unknown to the network.*'x'"):
        load_all(copy)


def test_a_config_of_absurd_size_is_refused_before_memory_is_taken(copy: Path) -> None:
    edit_json(copy / "unet/config.json", block_out_channels=[1 << 16] * 4)
    with pytest.raises(CheckpointError, match=r"configuration describes|configuration asks"):
        load_all(copy)
    edit_json(copy / "unet/config.json", layers_per_block=200, transformer_layers_per_block=200)
    with pytest.raises(CheckpointError, match="transformer_layers_per_block"):
        load_all(copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model_index.json", "[]"),
        ("model_index.json", "{"),
        ("model_index.json", "[" * 100_000),
        ("model_index.json", '{"_class_name": "FluxPipeline", "transformer": ["a", "b"]}'),
        ("unet/config.json", '{"block_out_channels": "x"}'),
        ("scheduler/scheduler_config.json", "\xff\xfe"),
        ("scheduler/scheduler_config.json", '{"a": ' * 500 + "1" + "}" * 500),
        ("tokenizer/tokenizer_config.json", '{"pad_token": 3}'),
    ],
)
def test_bad_json_is_named(copy: Path, name: str, content: str) -> None:
    (copy / name).write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=name):
        _ = load_checkpoint(copy).pad_tokens


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", UNET, "tokenizer/vocab.json"],
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=Path(name).name):
        load_all(copy)


def test_xl_parts(tmp_path: Path) -> None:
    base = load_checkpoint(make_tiny("tiny-sdxl", tmp_path / "base"))
    assert base.family == "sdxl"
    assert base.pad_tokens == {"text_encoder": "<|endoftext|>", "text_encoder_2": "!"}
    assert base.zero_empty_negative
    refiner = load_checkpoint(make_tiny("tiny-sdxl-refiner", tmp_path / "refiner"))
    assert refiner.family == "sdxl-refiner"
    assert refiner.parts == ("text_encoder_2", "unet", "vae")
    assert refiner.requires_aesthetic_score
    assert not refiner.zero_empty_negative
    assert refiner.text_encoder(part="text_encoder_2").config.with_projection


def test_a_second_text_encoder_that_is_none_is_refused(copy: Path) -> None:
    edit_json(copy / "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"])
    with pytest.raises(CheckpointError, match="text_encoder_2 is 'T5EncoderModel'"):
        load_checkpoint(copy)


def test_links_may_not_leave_the_folder(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (copy / UNET).rename(outside)
    (copy / UNET).symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        load_all(copy)
    (copy / UNET).unlink()
    (copy / UNET).symlink_to(copy / UNET)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_all(copy)


def test_links_to_the_hub_caches_blobs_are_followed(copy: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--x" / "blobs"
    snapshot.parent.mkdir(parents=True)
    blobs.mkdir()
    copy.rename(snapshot)
    (snapshot / UNET).rename(blobs / "123")
    (snapshot / UNET).symlink_to(Path("../../../blobs/123"))
    load_all(snapshot)


@pytest.mark.parametrize("path", ["/nonexistent", "", "\0", __file__])
def test_a_place_that_is_no_folder_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_path_of_another_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="checkpoint"):
        load_checkpoint(3)  # type: ignore[arg-type]


def test_saving_refuses_overflow_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    opened = load_checkpoint(checkpoint)
    unet = opened.unet()
    with torch.no_grad():
        unet.get_parameter("conv_in.bias")[0] = 1e6
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": opened.vae(),
        "text_encoder": opened.text_encoder(),
        "tokenizer_dir": checkpoint / "tokenizer",
        "scheduler_config": opened.scheduler_config,
    }
    with pytest.raises(CheckpointError, match=r"conv_in\.bias.*1e\+06"):
        save_checkpoint(tmp_path / "new", **parts)
    assert os.listdir(tmp_path) == []
    save_checkpoint(tmp_path / "new", **parts, dtype=torch.float32)
    with pytest.raises(OutputError, match="exists"):
        save_checkpoint(tmp_path / "new", **parts)
    with pytest.raises(OutputError, match="does not exist"):
        save_checkpoint(tmp_path / "no" / "new", **parts)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sd15"):
        make_synthetic("sd9", tmp_path / "x")


@pytest.mark.parametrize("shape", [(), (1,), (16,), (16, 1)])
def test_weights_in_8_bits_are_multiplied_with_their_scale(
    copy: Path, shape: tuple[int, ...]
) -> None:
    name = "down_blocks.0.resnets.0.conv1.weight"
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    stored = load_file(copy / UNET)[name].to(torch.float8_e4m3fn)
    added = {name: stored, name.replace("weight", "scale_weight"): scale}
    edit_weights(copy / UNET, lambda s: s.update(added))
    expected = stored.float() * scale.reshape(-1, 1, 1, 1)
    assert torch.equal(load_checkpoint(copy).unet().get_parameter(name), expected)
    # Without a scale they are what they are, in a type that has products.
    edit_weights(copy / UNET, lambda s: s.pop(name.replace("weight", "scale_weight")))
    found = load_checkpoint(copy).load("unet", None).get_parameter(name)
    assert found.dtype == torch.float16
    assert torch.equal(found, stored.half())


@pytest.mark.parametrize(
    "scale", [torch.ones(3), torch.ones(16).int(), torch.ones(0), torch.ones(4, 4, 2)]
)
def test_a_scale_that_fits_no_weight_is_named(copy: Path, scale: torch.Tensor) -> None:
    name = "down_blocks.0.resnets.0.conv1.scale_weight"
    edit_weights(copy / UNET, lambda s: s.update({name: scale}))
    with pytest.raises(CheckpointError, match=r"conv1\.scale_weight.*each of the rows"):
        load_checkpoint(copy).unet()


NO_PARAMETERS = {
    UNET: ["model_ema.decay", "optimizer_states.0.exp_avg"],
    VAE: ["loss.logvar", "model_ema.num_updates", "loss.discriminator.main.0.weight"],
    TEXT: [
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.class_embedding",
        "visual_projection.weight",
        "logit_scale",
    ],
}


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
def test_what_is_no_parameter_is_left_out_and_listed(
    checkpoint: Path, copy: Path, dtype: torch.dtype
) -> None:
    for file, names in NO_PARAMETERS.items():
        state = load_file(copy / file)
        (copy / file).unlink()
        added = {name: torch.zeros(3, dtype=dtype) for name in names}
        save_file({**state, **added}, copy / file)
    opened = load_checkpoint(copy)
    assert opened.sha256 == load_checkpoint(checkpoint).sha256
    assert sorted(opened.ignored) == sorted(n for names in NO_PARAMETERS.values() for n in names)
    assert load_checkpoint(checkpoint).ignored == {}


def test_what_is_no_parameter_decides_nothing(tmp_path: Path) -> None:
    """Leftovers of another family's text encoders do not make a file one of that family."""
    family = READABLE_SD15
    state = original_state(family, modules_of(family))
    leftovers = (
        "cond_stage_model.model.logit_scale",
        "conditioner.embedders.0.transformer.vision_model.x",
        "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids",
        "first_stage_model.loss.encoder.down.7.block.0.conv1.weight",
    )
    save_file({**state, **{name: torch.zeros(2) for name in leftovers}}, tmp_path / "m.safetensors")
    opened = load_checkpoint(tmp_path / "m.safetensors")
    assert opened.family == "sd1"
    assert opened.vae_config.block_out_channels == family.vae.block_out_channels
    assert set(opened.ignored) == {*leftovers, "model_ema.decay"}


def test_a_base_gives_the_rest_to_a_unet_alone(copy: Path, tmp_path: Path) -> None:
    other = load_checkpoint(make_tiny("tiny", tmp_path / "other", seed=1))
    base = load_checkpoint(copy)
    joined = load_checkpoint(other.root, base=copy)
    assert joined.part_sha256("unet") == other.part_sha256("unet")
    assert joined.part_sha256("vae") == base.part_sha256("vae")
    assert [(guess.what, guess.value) for guess in joined.guesses] == [
        ("prediction type", base.scheduler_config["prediction_type"])
    ]
    with pytest.raises(CheckpointError, match="base"):
        load_checkpoint(copy / TEXT, base=copy)
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        load_checkpoint(copy / "vae", base=copy)
