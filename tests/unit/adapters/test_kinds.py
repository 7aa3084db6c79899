"""Each kind of adapter gives the difference of its paper, from files as trainers write them.

The references are sums over indices in fp64, written from the layouts and not from the code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.adapters import (
    ATTENTION_1,
    CONV,
    LINEAR,
    NORM,
    POINTWISE,
    Array,
    difference,
    draw,
    flat,
    read,
    shape_of,
    tiny_modules,
    write,
)
from tolerances import assert_close

from sdengine.adapters.adapter import read_adapter
from sdengine.errors import AdapterError

RANK = 3


def numbered(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[Array]:
    return [draw(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def keys(path: str, **parts: Array | float) -> dict[str, Array]:
    """Return tensors under kohya's stem; "_weight" at a part's end stands for ".weight"."""
    return {
        f"{flat(path)}.{part.replace('_weight', '.weight')}": np.asarray(value, np.float32)
        if isinstance(value, float)
        else value
        for part, value in parts.items()
    }


def check(
    tmp_path: Path, path: str, tensors: dict[str, Array], expected: Array, **more: Any
) -> None:
    adapter = read(tmp_path, tensors, **more)
    weight = draw(*shape_of(path), seed=99)
    found = difference(adapter, f"{path}.weight", weight)
    assert found.dtype == np.float32 and found.shape == weight.shape
    assert_close("adapter", "float32", found, expected.reshape(weight.shape))


def lora(path: str, rank: int = RANK, pointwise: int = 0) -> tuple[dict[str, Array], Array]:
    out, inner, *kernel = shape_of(path)
    ones = [1] * pointwise
    down, up = numbered((rank, inner, *(kernel or ones)), (out, rank, *[1] * len(kernel or ones)))
    exact = np.einsum("or,rn->on", up.reshape(out, rank).astype(np.float64), down.reshape(rank, -1))
    return keys(path, lora_down_weight=down, lora_up_weight=up), exact


@pytest.mark.parametrize("path", [LINEAR, CONV, POINTWISE])
@pytest.mark.parametrize(
    ("alpha", "scale"), [(None, 1.0), (1.0, 1 / RANK), (4.5, 1.5), (0.0, 1.0), (-3.0, -1.0)]
)
def test_lora_and_its_alpha(tmp_path: Path, path: str, alpha: float | None, scale: float) -> None:
    tensors, exact = lora(path)
    if alpha is not None:
        tensors |= keys(path, alpha=alpha)
    check(tmp_path, path, tensors, exact * scale)


def test_a_matrix_for_a_pointwise_convolution_and_the_other_way_round(tmp_path: Path) -> None:
    out, inner, *_ = shape_of(POINTWISE)
    down, up = numbered((RANK, inner), (out, RANK))
    tensors = keys(POINTWISE, lora_down_weight=down, lora_up_weight=up)
    check(tmp_path, POINTWISE, tensors, up.astype(np.float64) @ down)
    tensors, exact = lora(LINEAR, pointwise=2)
    assert tensors[f"{flat(LINEAR)}.lora_down.weight"].ndim == 4
    check(tmp_path, LINEAR, tensors, exact)


def test_each_module_has_its_own_rank_and_alpha(tmp_path: Path) -> None:
    first, exact_first = lora(LINEAR, rank=2)
    second, exact_second = lora(CONV, rank=5)
    tensors = {**first, **keys(LINEAR, alpha=1.0), **second}
    adapter = read(tmp_path, tensors)
    for path, expected in ((LINEAR, exact_first / 2), (CONV, exact_second)):
        weight = draw(*shape_of(path))
        found = difference(adapter, f"{path}.weight", weight)
        assert_close("adapter", "float32", found, expected.reshape(weight.shape))


def test_convolution_with_a_core(tmp_path: Path) -> None:
    out, inner, *kernel = shape_of(CONV)
    up, mid, down = numbered((out, 3, 1, 1), (3, 4, *kernel), (4, inner, 1, 1))
    exact = np.einsum("om,mnxy,ni->oixy", up[:, :, 0, 0].astype(np.float64), mid, down[:, :, 0, 0])
    tensors = keys(CONV, lora_up_weight=up, lora_mid_weight=mid, lora_down_weight=down, alpha=2.0)
    check(tmp_path, CONV, tensors, exact * 2 / 4)


@pytest.mark.parametrize("path", [LINEAR, CONV])
def test_loha(tmp_path: Path, path: str) -> None:
    out, *rest = shape_of(path)
    columns = int(np.prod(rest))
    a1, b1, a2, b2 = numbered((out, RANK), (RANK, columns), (out, RANK), (RANK, columns))
    exact = (a1.astype(np.float64) @ b1) * (a2.astype(np.float64) @ b2)
    tensors = keys(path, hada_w1_a=a1, hada_w1_b=b1, hada_w2_a=a2, hada_w2_b=b2, alpha=2.0)
    check(tmp_path, path, tensors, exact * 2 / RANK)


def test_loha_with_cores(tmp_path: Path) -> None:
    out, inner, *kernel = shape_of(CONV)
    t1, a1, b1, t2, a2, b2 = numbered(
        (RANK, RANK, *kernel), (RANK, out), (RANK, inner),
        (RANK, RANK, *kernel), (RANK, out), (RANK, inner),
    )  # fmt: skip
    terms = "ijxy,io,jc->ocxy"
    exact = np.einsum(terms, t1.astype(np.float64), a1, b1) * np.einsum(
        terms, t2.astype(np.float64), a2, b2
    )
    parts = {"hada_t1": t1, "hada_w1_a": a1, "hada_w1_b": b1}
    parts |= {"hada_t2": t2, "hada_w2_a": a2, "hada_w2_b": b2}
    check(tmp_path, CONV, keys(CONV, **parts, alpha=6.0), exact * 2)


def kronecker(first: Array, second: Array) -> Array:
    """[a, c] and [b, d, ...] -> [a b, c d, ...]."""
    a, c = first.shape
    b, d, *kernel = second.shape
    made = np.einsum("ac,bdk->abcdk", first.astype(np.float64), second.reshape(b, d, -1))
    result: Array = made.reshape(a * b, c * d, *kernel)
    return result


LOKR_FORMS = ("whole", "second low", "first low", "both low", "core")


@pytest.mark.parametrize(
    ("path", "form"),
    [*((LINEAR, form) for form in LOKR_FORMS[:-1]), *((CONV, form) for form in LOKR_FORMS)],
)
def test_lokr(tmp_path: Path, path: str, form: str) -> None:
    out, inner, *kernel = shape_of(path)
    b, d = out // 2, inner // 4
    w1, w1_a, w1_b = numbered((2, 4), (2, RANK), (RANK, 4))
    columns = d * int(np.prod(kernel))
    w2, w2_a, w2_b, t2, low_a, low_b = numbered(
        (b, d, *kernel), (b, RANK), (RANK, columns),
        (RANK, RANK, *(kernel or [1])), (RANK, b), (RANK, d),
    )  # fmt: skip
    parts: dict[str, Any] = {}
    if form in ("first low", "both low"):
        parts |= {"lokr_w1_a": w1_a, "lokr_w1_b": w1_b}
        w1 = w1_a.astype(np.float64) @ w1_b
    else:
        parts["lokr_w1"] = w1
    if form in ("second low", "both low"):
        parts |= {"lokr_w2_a": w2_a, "lokr_w2_b": w2_b}
        w2 = (w2_a.astype(np.float64) @ w2_b).reshape(b, d, *kernel)
    elif form == "core":
        parts |= {"lokr_t2": t2, "lokr_w2_a": low_a, "lokr_w2_b": low_b}
        w2 = np.einsum("ijxy,ip,jr->prxy", t2.astype(np.float64), low_a, low_b)
    else:
        parts["lokr_w2"] = w2
    scale = 1.0 if form == "whole" else 2 / RANK
    check(tmp_path, path, keys(path, **parts, alpha=2.0), kronecker(w1, w2) * scale)


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        (1e10, {}, 1.0),
        (1e10, {"ss_network_dim": "10000000000"}, 1.0),
        (1.0, {"ss_network_dim": "10000000000"}, 1.0),
        (8.0, {"ss_network_dim": "8"}, 1.0),
        (1.0, {"ss_network_dim": "32"}, 1 / 32),
        (1.0, {"ss_network_dim": "Dynamic"}, 1.0),
        (1.0, {}, 1.0),
    ],
)
def test_whole_lokr_takes_its_rank_from_the_metadata(
    tmp_path: Path, alpha: float, metadata: dict[str, str], scale: float
) -> None:
    out, inner = shape_of(LINEAR)
    w1, w2 = numbered((4, 2), (out // 4, inner // 2))
    tensors = keys(LINEAR, lokr_w1=w1, lokr_w2=w2, alpha=alpha)
    check(tmp_path, LINEAR, tensors, kronecker(w1, w2) * scale, metadata=metadata)


def test_whole_lokr_of_a_convolution_has_the_rank_of_convolutions(tmp_path: Path) -> None:
    out, inner, *kernel = shape_of(CONV)
    w1, w2 = numbered((4, 2), (out // 4, inner // 2, *kernel))
    metadata = {"ss_network_dim": "32", "ss_network_args": json.dumps({"conv_dim": "16"})}
    tensors = keys(CONV, lokr_w1=w1, lokr_w2=w2, alpha=1.0)
    check(tmp_path, CONV, tensors, kronecker(w1, w2) / 16, metadata=metadata)


@pytest.mark.parametrize("path", [ATTENTION_1, CONV])  # the first is square
@pytest.mark.parametrize("axis", [0, 1])
def test_dora_on_either_axis(tmp_path: Path, path: str, axis: int) -> None:
    shape = shape_of(path)
    tensors, exact = lora(path)
    lengths_shape = [shape[n] if n == axis else 1 for n in range(len(shape))]
    lengths = 1 + draw(*lengths_shape, seed=5)
    tensors |= keys(path, dora_scale=lengths, alpha=6.0)
    weight = draw(*shape, seed=99).astype(np.float64)
    changed = weight + 2 * exact.reshape(shape)
    others = tuple(n for n in range(len(shape)) if n != axis)
    norm = np.sqrt((changed**2).sum(axis=others, keepdims=True))
    check(tmp_path, path, tensors, lengths * changed / norm - weight)


def test_the_two_axes_of_a_square_layer_differ(tmp_path: Path) -> None:
    shape = shape_of(ATTENTION_1)
    assert shape[0] == shape[1]
    tensors, _ = lora(ATTENTION_1)
    lengths = 1 + draw(shape[0], 1)
    weight = draw(*shape, seed=9)
    made = []
    for given in (lengths, lengths.T):
        adapter = read(tmp_path, {**tensors, **keys(ATTENTION_1, dora_scale=given)})
        made.append(difference(adapter, f"{ATTENTION_1}.weight", weight))
        assert adapter.kinds == ("DoRA (LoRA)",)
    assert np.abs(made[0] - made[1]).max() > 0.01


def test_dora_leaves_rows_of_zeros_alone(tmp_path: Path) -> None:
    shape = shape_of(LINEAR)
    tensors, _ = lora(LINEAR)
    tensors[f"{flat(LINEAR)}.lora_up.weight"][0] = 0
    adapter = read(tmp_path, {**tensors, **keys(LINEAR, dora_scale=np.ones((shape[0], 1), "f4"))})
    weight = draw(*shape)
    weight[0] = 0
    found = difference(adapter, f"{LINEAR}.weight", weight)
    assert np.isfinite(found).all() and not found[0].any()


def test_full_differences_of_weights_biases_and_norms(tmp_path: Path) -> None:
    weight, bias = draw(*shape_of(CONV), seed=1), draw(shape_of(CONV)[0], seed=2)
    norm, norm_bias = draw(shape_of(NORM)[0], seed=3), draw(shape_of(NORM)[0], seed=4)
    adapter = read(
        tmp_path,
        {
            **keys(CONV, diff=weight, diff_b=bias, alpha=7.0),  # which no trainer divides by
            **keys(NORM, w_norm=norm, b_norm=norm_bias),
        },
    )
    found = {change.parameter: change for change in adapter.changes["unet"]}
    expected = {
        f"{CONV}.weight": weight,
        f"{CONV}.bias": bias,
        f"{NORM}.weight": norm,
        f"{NORM}.bias": norm_bias,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(found[name].difference.of(np.ones_like(value)), value)


@pytest.mark.parametrize("on_input", [False, True])
def test_ia3_of_lycoris(tmp_path: Path, on_input: bool) -> None:
    out, inner = shape_of(LINEAR)
    factor = draw(1, inner) if on_input else draw(out, 1)
    weight = draw(out, inner, seed=99)
    tensors = keys(LINEAR, weight=factor, on_input=np.asarray(float(on_input), np.float32))
    check(tmp_path, LINEAR, tensors, weight.astype(np.float64) * factor)


def test_peft_settings_say_what_files_leave_out(tmp_path: Path) -> None:
    tensors, exact = lora(LINEAR)
    pair = {
        f"base_model.model.{LINEAR}.lora_A.weight": tensors[f"{flat(LINEAR)}.lora_down.weight"],
        f"base_model.model.{LINEAR}.lora_B.weight": tensors[f"{flat(LINEAR)}.lora_up.weight"],
    }
    for settings, scale in (
        ({"r": RANK, "lora_alpha": 6}, 2.0),
        ({"r": RANK, "lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
        ({"r": 8, "rank_pattern": {"attn2.to_k": RANK}, "lora_alpha": 6}, 2.0),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"to_k": 9}}, 3.0),
        ({"r": RANK, "lora_alpha": 6, "alpha_pattern": {"o_k": 9}}, 2.0),
    ):
        folder = tmp_path / "my-lora"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
        write(folder / "adapter_model.safetensors", pair)
        adapter = read_adapter(folder, tiny_modules("tiny"))
        assert adapter.name == "my-lora"
        found = difference(adapter, f"{LINEAR}.weight", np.zeros(shape_of(LINEAR), np.float32))
        assert_close("adapter", "float32", found, exact * scale)
    metadata = {
        "lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 6, "vae.r": 1})
    }
    check(tmp_path, LINEAR, pair, exact * 2, metadata=metadata)
    # Without them alpha is the rank.
    check(tmp_path, LINEAR, pair, exact)


def test_an_expression_in_a_pattern_is_refused(tmp_path: Path) -> None:
    tensors, _ = lora(LINEAR)
    told = {"unet.r": 3, "unet.alpha_pattern": {"(a+)+$": 1}}
    with pytest.raises(AdapterError, match="only names are read"):
        read(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(told)})


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats(tmp_path: Path, dtype: Any) -> None:
    tensors, _ = lora(LINEAR)
    rounded = {key: value.astype(dtype) for key, value in tensors.items()}
    down, up = (value.astype(np.float64) for value in rounded.values())
    check(tmp_path, LINEAR, rounded, up @ down)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_are_read_as_data(tmp_path: Path, legacy: bool) -> None:
    tensors, _ = lora(LINEAR)
    state = {key: torch.from_numpy(value).bfloat16() for key, value in tensors.items()}
    path = tmp_path / "adapter.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    adapter = read_adapter(path, tiny_modules("tiny"))
    down, up = (value.double() for value in state.values())
    found = difference(adapter, f"{LINEAR}.weight", np.zeros(shape_of(LINEAR), np.float32))
    assert_close("adapter", "float32", found, (up @ down).numpy())
