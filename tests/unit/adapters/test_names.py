"""An adapter's keys are found in every convention, from the modules that a bundle has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.adapters import LINEAR, draw, read, tiny_modules, tiny_shapes, write
from support.tiny_architectures import TINY

from sdengine import _native
from sdengine.adapters.adapter import read_adapter
from sdengine.adapters.key_names import key_stems
from sdengine.adapters.modules import known_modules
from sdengine.adapters.original_names import openclip_paths, unet_paths
from sdengine.adapters.parts import split_key
from sdengine.adapters.sources.renaming import openclip_names, unet_names
from sdengine.errors import AdapterError


@pytest.mark.parametrize("name", ["tiny", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner"])
def test_original_names_are_those_that_checkpoints_are_read_by(name: str) -> None:
    paths = {parameter.rpartition(".")[0] for parameter in tiny_shapes(name)["unet"]}
    originals = unet_paths(paths)
    rename = unet_names(TINY[name].unet.num_layers)
    assert originals.keys() == paths
    assert len(set(originals.values())) == len(paths)
    for path, original in originals.items():
        assert rename(f"{original}.weight") == f"{path}.weight"


def test_openclip_names_are_those_that_checkpoints_are_read_by() -> None:
    config = TINY["tiny-sdxl"].text_encoders[1]
    paths = {p.rpartition(".")[0] for p in tiny_shapes("tiny-sdxl")["text_encoder_2"]}
    rename = openclip_names(config.num_hidden_layers, config.with_projection)
    for path, original in openclip_paths(paths).items():
        if original.endswith("attn.in_proj"):
            pieces = rename(f"{original}_weight")
            assert pieces is not None and not isinstance(pieces, str)
            assert f"{path}.weight" in [piece.name for piece in pieces]
        elif path != "text_projection":  # a parameter there, a module here
            assert rename(f"{original}.weight") == f"{path}.weight"


@pytest.mark.parametrize("name", ["tiny", "tiny-sdxl"])
def test_flat_names_mean_one_module_each(name: str) -> None:
    stems = key_stems(tiny_modules(name))
    assert all(len(targets) == 1 for stem, targets in stems.items() if stem.startswith("lora_"))


def _pair(stem: str, shape: tuple[int, ...], down: str, up: str) -> dict[str, np.ndarray]:
    return {f"{stem}{down}": draw(2, shape[1]), f"{stem}{up}": draw(shape[0], 2, seed=1)}


_KOHYA = (".lora_down.weight", ".lora_up.weight")
_UNET_FORMS = {
    "kohya": ("lora_unet_" + LINEAR.replace(".", "_"), *_KOHYA),
    "kohya, original": (
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", *_KOHYA,
    ),
    "diffusers": (f"unet.{LINEAR}", ".lora_A.weight", ".lora_B.weight"),
    "PEFT": (f"base_model.model.{LINEAR}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers of 2023": (f"unet.{LINEAR}", ".lora.down.weight", ".lora.up.weight"),
    "processors": (
        f"unet.{LINEAR.replace('.to_k', '.processor.to_k_lora')}", ".down.weight", ".up.weight",
    ),
    "processors alone": (
        LINEAR.replace(".to_k", ".processor.to_k_lora"), ".down.weight", ".up.weight",
    ),
    "ComfyUI": (
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k", *_KOHYA,
    ),
    "OneTrainer, dotted": ("unet.input_blocks.1.1.transformer_blocks.0.attn2.to_k", *_KOHYA),
}  # fmt: skip


@pytest.mark.parametrize("form", _UNET_FORMS)
def test_unet_keys(tmp_path: Path, form: str) -> None:
    shape = tiny_shapes("tiny")["unet"][f"{LINEAR}.weight"]
    adapter = read(tmp_path, _pair(_UNET_FORMS[form][0], shape, *_UNET_FORMS[form][1:]))
    assert [c.parameter for c in adapter.changes["unet"]] == [f"{LINEAR}.weight"]


_TEXT = "text_model.encoder.layers.1.self_attn.q_proj"
_TEXT_FORMS = {
    "kohya": ("tiny", "text_encoder", "lora_te_" + _TEXT.replace(".", "_"), *_KOHYA),
    "kohya, first of two": (
        "tiny-sdxl", "text_encoder", "lora_te1_" + _TEXT.replace(".", "_"), *_KOHYA,
    ),
    "kohya, second of two": (
        "tiny-sdxl", "text_encoder_2", "lora_te2_" + _TEXT.replace(".", "_"), *_KOHYA,
    ),
    "diffusers": (
        "tiny-sdxl", "text_encoder_2", f"text_encoder_2.{_TEXT}", ".lora_A.weight",
        ".lora_B.weight",
    ),
    "without text_model": (
        "tiny", "text_encoder", f"text_encoder.{_TEXT.removeprefix('text_model.')}",
        ".lora_A.weight", ".lora_B.weight",
    ),
    "old diffusers": (
        "tiny", "text_encoder", f"text_encoder.{_TEXT.replace('q_proj', 'to_q_lora')}",
        ".down.weight", ".up.weight",
    ),
    "old diffusers, linear": (
        "tiny", "text_encoder", f"text_encoder.{_TEXT}", ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "OneTrainer, dotted": ("tiny-sd21", "text_encoder", f"clip_l.{_TEXT}", *_KOHYA),
    "OneTrainer, dotted, second of two": (
        "tiny-sdxl", "text_encoder_2", f"clip_g.{_TEXT}", *_KOHYA,
    ),
    "projection": ("tiny-sdxl", "text_encoder_2", "lora_te2_text_projection", *_KOHYA),
}  # fmt: skip


@pytest.mark.parametrize("form", _TEXT_FORMS)
def test_text_encoder_keys(tmp_path: Path, form: str) -> None:
    name, network, stem, down, up = _TEXT_FORMS[form]
    path = "text_projection" if form == "projection" else _TEXT
    shape = tiny_shapes(name)[network][f"{path}.weight"]
    adapter = read(tmp_path, _pair(stem, shape, down, up), name=name)
    assert list(adapter.changes) == [network]
    assert [c.parameter for c in adapter.changes[network]] == [f"{path}.weight"]


def test_a_folder_of_one_encoder_of_two_is_told_by_its_shapes(tmp_path: Path) -> None:
    narrow = dict(tiny_shapes("tiny-sdxl"))
    shape = narrow["text_encoder"][f"{_TEXT}.weight"]
    pair = _pair(f"base_model.model.{_TEXT}", shape, ".lora_A.weight", ".lora_B.weight")
    path = write(tmp_path / "a.safetensors", pair)
    with pytest.raises(AdapterError, match="fits text_encoder and text_encoder_2 alike"):
        read_adapter(path, known_modules(narrow, {}))
    for other, expected in (("text_encoder", "text_encoder_2"), ("text_encoder_2", "text_encoder")):
        wide = {n: tuple(2 * size for size in s) for n, s in narrow[other].items()}
        adapter = read_adapter(path, known_modules({**narrow, other: wide}, {}))
        assert list(adapter.changes) == [expected]


def test_the_refiners_only_encoder_under_either_name(tmp_path: Path) -> None:
    shapes = {"text_encoder_2": tiny_shapes("tiny-sdxl")["text_encoder_2"]}
    stems = key_stems(tuple(known_modules(shapes, {})))
    for prefix in ("lora_te_", "lora_te2_"):
        ((module,),) = stems[prefix + _TEXT.replace(".", "_")]
        assert (module.network, module.path) == ("text_encoder_2", _TEXT)
    assert "lora_te1_" + _TEXT.replace(".", "_") not in stems


def test_a_fused_matrix_changes_three(tmp_path: Path) -> None:
    place = "text_model.encoder.layers.0.self_attn"
    width = tiny_shapes("tiny-sd21")["text_encoder"][f"{place}.q_proj.weight"][0]
    tensors = _pair("lora_te_transformer_resblocks_0_attn_in_proj", (3 * width, width), *_KOHYA)
    adapter = read(tmp_path, tensors, name="tiny-sd21")
    down, up = tensors.values()
    whole = _native.low_rank_product(up, down)
    for part, matrix in enumerate("qkv"):
        (change,) = [
            c
            for c in adapter.changes["text_encoder"]
            if c.parameter == f"{place}.{matrix}_proj.weight"
        ]
        found = change.difference.of(np.zeros((width, width), np.float32))
        assert np.array_equal(found, whole[part * width : (part + 1) * width])


def test_layers_that_nothing_reads_are_known_and_change_nothing(tmp_path: Path) -> None:
    shapes = tiny_shapes("tiny-sdxl")
    cut = {n: s for n, s in shapes["text_encoder"].items() if ".layers.2." not in n}
    modules = known_modules({**shapes, "text_encoder": cut}, {"text_encoder": 3})
    shape = cut["text_model.encoder.layers.0.self_attn.q_proj.weight"]
    used = _pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", shape, *_KOHYA)
    idle = _pair("lora_te1_text_model_encoder_layers_2_self_attn_q_proj", shape, *_KOHYA)
    adapter = read_adapter(write(tmp_path / "a.safetensors", {**used, **idle}), modules)
    assert set(adapter.idle) == set(idle)
    assert [c.parameter for c in adapter.changes["text_encoder"]] == [
        "text_model.encoder.layers.0.self_attn.q_proj.weight"
    ]


def test_both_names_of_one_module_in_one_file_are_refused(tmp_path: Path) -> None:
    shape = tiny_shapes("tiny")["unet"][f"{LINEAR}.weight"]
    tensors = {
        **_pair(_UNET_FORMS["kohya"][0], shape, *_KOHYA),
        **_pair(_UNET_FORMS["kohya, original"][0], shape, *_KOHYA),
    }
    with pytest.raises(AdapterError, match=r"both change unet"):
        read(tmp_path, tensors)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("x.y.lora_A.weight", ("x.y", "down")),
        ("x.y.lora_B.my_name.weight", ("x.y", "up")),
        ("x.lora_magnitude_vector.default", ("x", "magnitude")),
        ("x.lora_magnitude_vector.default.weight", ("x", "magnitude")),
        ("x.lora_magnitude_vector", ("x", "magnitude")),
        ("x.lora_B.bias", ("x", "up_bias")),
        ("x.alpha", ("x", "alpha")),
        ("x.to_q_lora.up.weight", ("x.to_q_lora", "up")),
        ("x.weight", ("x", "weight")),
        ("x", None),
        ("x.gamma", None),
    ],
)
def test_keys_are_split_at_what_they_end_with(key: str, found: tuple[str, str] | None) -> None:
    assert split_key(key) == found
