"""What does not fit is refused by name before anything is applied; nothing is skipped."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adapters import (
    CONV,
    LINEAR,
    NORM,
    Array,
    draw,
    flat,
    read,
    shape_of,
    tiny_modules,
    tiny_shapes,
    write,
)

from sdengine.adapters.adapter import read_adapter
from sdengine.adapters.few_steps import few_steps
from sdengine.adapters.modules import known_modules
from sdengine.errors import AdapterError, SdengineError

OUT, IN = shape_of(LINEAR)
STEM = flat(LINEAR)


def pair(**more: Array) -> dict[str, Array]:
    return {
        f"{STEM}.lora_down.weight": draw(2, IN),
        f"{STEM}.lora_up.weight": draw(OUT, 2),
        **{key.replace("__", "."): value for key, value in more.items()},
    }


def test_unknown_keys_are_named_or_listed(tmp_path: Path) -> None:
    tensors = pair(lora_unet_nowhere__lora_up__weight=draw(2, 2), whatever=draw(1))
    # It was made for no other family, so none is named.
    with pytest.raises(AdapterError, match=r"2 of its 4 tensors.*lora_unet_nowhere.*effect\.$"):
        read(tmp_path, tensors)
    adapter = read(tmp_path, tensors, strict=False)
    assert adapter.unknown == ("lora_unet_nowhere.lora_up.weight", "whatever")
    assert [c.parameter for c in adapter.changes["unet"]] == [f"{LINEAR}.weight"]


def test_a_textual_inversion_alone_is_no_lora(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"none of its 1 tensors.*--embedding"):
        read(tmp_path, {"emb_params": draw(2, 8)})


def test_textual_inversions_inside_are_left_to_their_reader(tmp_path: Path) -> None:
    adapter = read(tmp_path, pair(bundle_emb__cat__emb_params=draw(2, 8)))
    assert adapter.has_embeddings and adapter.holder.path == tmp_path / "adapter.safetensors"
    assert not read(tmp_path, pair()).has_embeddings
    with pytest.raises(AdapterError, match="none of its 1 tensors"):
        read(tmp_path, {"bundle_emb.cat.emb_params": draw(2, 8)})


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({f"{STEM}.a1.weight": draw(2, 2)}, "GLoRA"),
        ({f"{STEM}.oft_blocks": draw(2, 2, 2)}, "OFT"),
        ({f"base_model.model.{LINEAR}.oft_R.weight": draw(2, 2)}, "OFT"),
        ({f"base_model.model.{LINEAR}.boft_R": draw(2, 2)}, "BOFT"),
        ({f"base_model.model.{LINEAR}.vera_lambda_b": draw(2)}, "VeRA"),
        ({f"{STEM}.bias_indices": draw(2)}, "a sparse bias"),
    ],
)
def test_kinds_that_are_not_applied_are_named(
    tmp_path: Path, tensors: dict[str, Array], kind: str
) -> None:
    with pytest.raises(AdapterError, match=f"is of {kind}, which is not applied"):
        read(tmp_path, {**pair(), **tensors})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{STEM}.lora_down.weight": draw(2, IN)}, "up is missing"),
        ({f"{STEM}.alpha": draw()}, "no whole change"),
        (pair(**{f"{STEM}__diff": draw(OUT, IN)}), "several|LoRA and full difference"),
        (pair(**{f"{STEM}__dora_scale": draw(OUT + 1, 1)}), "a length for each of"),
        (pair(**{f"{STEM}__dora_scale": draw()}), "dora_scale"),
        (pair(**{f"{STEM}__alpha": draw(3)}), "not one number"),
        (pair(**{f"{STEM}__diff_b": draw(OUT)}), "has no bias"),
        (pair(**{f"{STEM}__w_norm": draw(OUT)}), "has no norm's weight"),
        ({f"{STEM}.weight": draw(OUT, IN)}, "a whole weight, not a change"),
        ({f"{flat(NORM)}.w_norm": draw(3)}, r"is \[3\], but unet .*norm1 has"),
        ({f"{STEM}.diff": np.zeros((OUT, IN), np.int32)}, "is int32; expected a float"),
        (
            {f"{STEM}.lora_down.weight": draw(2, IN + 1), f"{STEM}.lora_up.weight": draw(OUT, 2)},
            rf"LoRA of \[{OUT}, {IN + 1}\], but unet {LINEAR} is \[{OUT}, {IN}\]",
        ),
        (
            {f"{STEM}.lora_down.weight": draw(2, IN), f"{STEM}.lora_up.weight": draw(OUT, 3)},
            "ranks of up and down are 3 and 2",
        ),
        (
            {f"{STEM}.lokr_w1": draw(3, 1), f"{STEM}.lokr_w2": draw(OUT, IN)},
            rf"LoKr of \[{3 * OUT}, {IN}\]",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, tensors: dict[str, Array], message: str
) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        read(tmp_path, tensors)
    assert "lora_unet_" in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", [f"{STEM}.lora_up.weight", f"{flat(CONV)}.diff_b"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, key: str, bad: float) -> None:
    tensors = pair(**{f"{flat(CONV)}__diff_b": draw(shape_of(CONV)[0])})
    tensors[key].reshape(-1)[-1] = bad
    with pytest.raises(AdapterError, match=r"holds NaN or infinity.*Nothing was applied") as caught:
        read(tmp_path, tensors)
    assert key in str(caught.value)


def _with_width(width: int) -> dict[str, Array]:
    return {f"{STEM}.lora_down.weight": draw(2, width), f"{STEM}.lora_up.weight": draw(OUT, 2)}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (_with_width(768), "Stable Diffusion 1"),
        (_with_width(1024), "Stable Diffusion 2"),
        (_with_width(2048), "Stable Diffusion XL"),
        (_with_width(1280), "the refiner"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": draw(2, 2)}, "FLUX"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": draw(2, 2)}, "a diffusion"),
    ],
)
def test_the_family_that_it_was_made_for_is_named(
    tmp_path: Path, tensors: dict[str, Array], told: str
) -> None:
    with pytest.raises(AdapterError, match=f"It was made for {told}.*this bundle is"):
        read(tmp_path, tensors)


def test_the_first_convolution_of_inpainting_models(tmp_path: Path) -> None:
    shapes = dict(tiny_shapes("tiny")["unet"])
    out = shapes["conv_in.weight"][0]
    shapes["conv_in.weight"] = (out, 9, 3, 3)
    modules = known_modules({"unet": shapes}, {})
    path = write(tmp_path / "a.safetensors", {"lora_unet_conv_in.diff": draw(out, 4, 3, 3)})
    (change,) = read_adapter(path, modules).changes["unet"]
    found = change.difference.of(np.zeros((out, 9, 3, 3), np.float32))
    assert np.array_equal(found[:, :4], draw(out, 4, 3, 3)) and not found[:, 4:].any()
    path = write(tmp_path / "b.safetensors", {"lora_unet_conv_in.diff": draw(out, 9, 3, 3)})
    with pytest.raises(AdapterError, match=r"is \[\d+, 4, 3, 3\]"):
        read_adapter(path, tiny_modules("tiny"))
    path = write(tmp_path / "c.safetensors", {"lora_unet_conv_in.diff": draw(out, 8, 3, 3)})
    with pytest.raises(AdapterError, match=r"is \[\d+, 9, 3, 3\]"):
        read_adapter(path, modules)


def test_a_core_of_absurd_rank_makes_no_work(tmp_path: Path) -> None:
    out, inner, *kernel = shape_of(CONV)
    rank = 5000
    tensors = {
        f"{flat(CONV)}.lora_up.weight": np.zeros((out, 1, 1, 1), np.float16),
        f"{flat(CONV)}.lora_mid.weight": np.zeros((1, rank, *kernel), np.float16),
        f"{flat(CONV)}.lora_down.weight": np.zeros((rank, inner, 1, 1), np.float16),
    }
    with pytest.raises(AdapterError, match="ranks of 1 and 5000"):
        read(tmp_path, tensors)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    path.write_bytes(write(tmp_path / "a.safetensors", pair()).read_bytes())
    assert read_adapter(path, tiny_modules("tiny")).name == "caf?"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 1 << 20), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_an_altered_file_gives_changes_or_an_error(
    tmp_path: Path, place: int, byte: int, cut: int
) -> None:
    content = bytearray(write(tmp_path / "a.safetensors", pair(), {"a": "b"}).read_bytes())
    content[place % 400] = byte  # of the header, and a little of the tensors
    (tmp_path / "b.safetensors").write_bytes(content[: len(content) - max(0, cut - 30)])
    try:
        read_adapter(tmp_path / "b.safetensors", tiny_modules("tiny"))
    except SdengineError:
        return


def test_files_that_are_none(tmp_path: Path) -> None:
    good = write(tmp_path / "a.safetensors", pair()).read_bytes()
    cases: dict[str, bytes] = {
        "empty.safetensors": b"",
        "cut.safetensors": good[:-3],
        "header.safetensors": struct.pack("<Q", 1 << 40) + good[8:],
        "name.txt": good,
        "pickle.pt": b"cos\nsystem\n(S'touch hacked'\ntR.",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
            read_adapter(tmp_path / name, tiny_modules("tiny"))
    with pytest.raises(AdapterError, match=r"missing\.safetensors' cannot be read: No such file"):
        read_adapter(tmp_path / "missing.safetensors", tiny_modules("tiny"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(AdapterError, match=r"the folder has none of adapter_model"):
        read_adapter(tmp_path / "folder", tiny_modules("tiny"))
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(AdapterError, match="no regular file"):
        read_adapter(tmp_path / "pipe.safetensors", tiny_modules("tiny"))
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "settings_text",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"unet.r": 0}',
        '{"unet.r": true}',
        '{"unet.r": 1e999}',
        '{"unet.r": 4, "unet.lora_alpha": NaN}',
        '{"unet.r": 4, "unet.lora_alpha": 1' + "0" * 400 + "}",
        '{"unet.peft_type": "OFT"}',
        '{"unet.rank_pattern": {"a": 0.5}}',
        '{"unet.alpha_pattern": []}',
        '{"unet.use_rslora": 1}',
        '{"unet.fan_in_fan_out": true}',
    ],
)
def test_malformed_settings(tmp_path: Path, settings_text: str) -> None:
    with pytest.raises(AdapterError, match="lora_adapter_metadata"):
        read(tmp_path, pair(), {"lora_adapter_metadata": settings_text})


_PART = st.sampled_from(
    (
        "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff",
        "diff_b", "w_norm", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_b", "lokr_t2", "weight",
        "on_input", "lora_magnitude_vector", "lora_B.bias", "ia3_l",
    )
)  # fmt: skip
_SIZES = st.sampled_from([0, 1, 2, 3, OUT, IN, 9 * IN])
_SHAPES = st.lists(_SIZES, max_size=5).filter(lambda shape: math.prod(shape) < 1 << 16)
_STEMS = st.sampled_from([STEM, flat(CONV), flat(NORM), "lora_unet_conv_in"])


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(content=st.dictionaries(st.tuples(_STEMS, _PART), _SHAPES, min_size=1, max_size=6))
def test_any_parts_of_any_shapes_give_a_change_or_an_error(
    tmp_path: Path, content: dict[tuple[str, str], list[int]]
) -> None:
    tensors = {
        f"{stem}.{part}": np.ones(shape, np.float16) for (stem, part), shape in content.items()
    }
    try:
        adapter = read(tmp_path, tensors)
    except SdengineError:
        return
    for change in adapter.changes.get("unet", ()):
        shape = tiny_shapes("tiny")["unet"][change.parameter]
        assert change.difference.of(np.ones(shape, np.float32)).shape == shape


@pytest.mark.parametrize(
    ("name", "metadata", "found"),
    [
        ("lcm-lora-sdv1-5", {}, ("LCM", "lcm", "normal", 4, 1.0)),
        ("LCM_LoRA_Weights_SD15", {}, ("LCM", "lcm", "normal", 4, 1.0)),
        ("sdxl_lightning_8step_lora", {}, ("Lightning", "euler", "sgm_uniform", 8, 1.0)),
        ("Hyper-SD15-8steps-lora", {}, ("Hyper-SD", "ddim", "sgm_uniform", 8, 1.0)),
        ("dmd2_sdxl_4step_lora", {}, ("DMD2", "lcm", "normal", 4, 1.0)),
        ("anything", {"ss_output_name": "my_lcm"}, ("LCM", "lcm", "normal", 4, 1.0)),
        ("hyperrealistic-v2", {}, None),
        ("lightning-strikes", {}, None),
        ("calcmath", {}, None),
    ],
)
def test_loras_for_few_steps_say_how_they_want_to_be_sampled(
    name: str, metadata: dict[str, str], found: tuple[Any, ...] | None
) -> None:
    told = few_steps(name, metadata)
    assert found == (
        told and (told.name, told.sampler, told.schedule, told.steps, told.guidance_scale)
    )


def test_few_steps_are_told_of_a_file(tmp_path: Path) -> None:
    adapter = read(tmp_path, pair(), {"ss_output_name": "lcm"}, file="lcm-lora.safetensors")
    assert adapter.few_steps is not None and adapter.few_steps.name == "LCM"
    assert (adapter.name, adapter.alias) == ("lcm-lora", "lcm")
    folder = tmp_path / "lcm-lora-sdxl"
    folder.mkdir()
    write(folder / "pytorch_lora_weights.safetensors", pair())
    for path in (folder, folder / "pytorch_lora_weights.safetensors"):
        named = read_adapter(path, tiny_modules("tiny"))
        assert named.name == "lcm-lora-sdxl" and named.few_steps is not None
