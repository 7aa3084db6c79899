"""Merging leaves no trace of order, of earlier adapters, or of those with no strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.adapters import LINEAR, Array, draw, flat, merge_all, read, shape_of
from tolerances import assert_close

from sdengine.adapters.adapter import Adapter
from sdengine.adapters.weight_set import WeightSet
from sdengine.errors import AdapterError
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

PARAMETER = f"{LINEAR}.weight"
SHAPE = shape_of(LINEAR)


def plain(folder: Path, seed: int, dora: bool = False) -> Adapter:
    out, inner = SHAPE
    tensors = {
        f"{flat(LINEAR)}.lora_down.weight": draw(2, inner, seed=seed),
        f"{flat(LINEAR)}.lora_up.weight": draw(out, 2, seed=seed + 100),
    }
    if dora:
        tensors[f"{flat(LINEAR)}.dora_scale"] = 1 + draw(out, 1, seed=seed)
    return read(folder, tensors, file=f"{seed}{dora}.safetensors")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [plain(folder, seed, dora=seed > 2) for seed in range(5)]


def bits(array: Array) -> bytes:
    return array.tobytes()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_order_of_adapters_changes_a_bit(adapters: list[Adapter], data: Any) -> None:
    strengths = st.sampled_from([-5.0, -0.3, 0.0, 0.1, 0.7, 1.0, 3.5])
    chosen = [(adapter, data.draw(strengths)) for adapter in adapters]
    weight = draw(*SHAPE, seed=77, dtype=np.float16)
    first = merge_all(weight, chosen, PARAMETER)
    assert bits(merge_all(weight, data.draw(st.permutations(chosen)), PARAMETER)) == bits(first)
    present = [pair for pair in chosen if pair[1]]
    assert bits(merge_all(weight, present, PARAMETER)) == bits(first)


def test_there_and_back_again(adapters: list[Adapter]) -> None:
    weight = draw(*SHAPE, seed=77, dtype=np.float16)
    before = bits(weight)
    one, two = [(adapters[0], 0.8)], [(adapters[3], 1.0)]
    first = merge_all(weight, one, PARAMETER)
    for _ in range(3):
        assert bits(merge_all(weight, two, PARAMETER)) != bits(first)
        assert bits(merge_all(weight, one, PARAMETER)) == bits(first)
    assert bits(weight) == before
    assert merge_all(weight, [(adapters[0], 0.0)], PARAMETER) is weight
    assert merge_all(weight, [], PARAMETER) is weight


@pytest.mark.parametrize("strength", [-5.0, -1.0, 0.25, 1.0, 2.5])
def test_the_sum_is_rounded_nowhere_between(adapters: list[Adapter], strength: float) -> None:
    weight = draw(*SHAPE, seed=77)
    chosen = [(adapters[0], strength), (adapters[1], 1 - strength)]
    for stored in (weight.astype(np.float16), to_bf16_bits(weight), weight):
        exact = to_float32(stored).astype(np.float64)
        for adapter, factor in chosen:
            (change,) = adapter.changes["unet"]
            exact = exact + factor * change.difference.of(to_float32(stored)).astype(np.float64)
        found = merge_all(stored, chosen, PARAMETER)
        assert found.dtype == np.float32
        assert_close("adapter", "float32", found, exact)


def test_doras_are_taken_from_the_pristine_weight_and_added(adapters: list[Adapter]) -> None:
    weight = draw(*SHAPE, seed=77)
    one, two = (
        merge_all(weight, [(adapters[n], 1.0)], PARAMETER).astype(np.float64) - weight
        for n in (3, 4)
    )
    both = merge_all(weight, [(adapters[3], 1.0), (adapters[4], 0.5)], PARAMETER)
    assert_close("adapter", "float32", both, weight + one + 0.5 * two)


def test_a_sum_that_overflows_is_refused(adapters: list[Adapter]) -> None:
    with pytest.raises(AdapterError, match=r"NaN or infinite.*smaller"):
        merge_all(np.full(SHAPE, 3.4e38, np.float32), [(adapters[0], 1e38)], PARAMETER)


def test_text_and_image_have_strengths_of_their_own(tmp_path: Path) -> None:
    text = "text_model.encoder.layers.0.mlp.fc1"
    out, inner = shape_of(text, network="text_encoder")
    tensors = {
        f"lora_te_{text.replace('.', '_')}.lora_down.weight": draw(2, inner),
        f"lora_te_{text.replace('.', '_')}.lora_up.weight": draw(out, 2),
        f"{flat(LINEAR)}.lora_down.weight": draw(2, SHAPE[1]),
        f"{flat(LINEAR)}.lora_up.weight": draw(SHAPE[0], 2),
    }
    adapter = read(tmp_path, tensors)
    applied = WeightSet(((adapter, 0.5, -2.0),))
    assert [s for _, s in applied.changes("text_encoder")[f"{text}.weight"]] == [0.5]
    assert [s for _, s in applied.changes("unet")[PARAMETER]] == [-2.0]
    silent = WeightSet(((adapter, 0.0, 1.0),))
    assert not silent.changes("text_encoder") and not silent.identity("text_encoder")
    names = [a.identity(n) for a in (applied, silent) for n in ("unet", "text_encoder")]
    assert len(set(names)) == len(names)
