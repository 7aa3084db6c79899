"""Which sizes fit into a memory, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sdengine.backends import get_backend
from sdengine.backends.base import SessionOptions
from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds
from sdengine.backends.openvino import OpenVinoBackend
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError, OutOfMemoryError

GB = 10**9


def needs(side: int, scratch: int | None = 2 * GB) -> SizeNeeds:
    tensors = side * 10**6
    return SizeNeeds(
        width=side,
        height=side,
        weight_bytes={"text_encoder": GB, "unet": 4 * GB, "vae_decoder": GB},
        scratch_bytes={"unet": scratch, "vae_decoder": None if scratch is None else scratch // 2},
        tensor_bytes=tensors,
        arena_bytes=tensors + (scratch or 0),
        graph_bytes=GB // 10,
        stage_weight_bytes=4 * GB,
    )


def test_what_a_size_takes_adds_up() -> None:
    size = needs(500)
    assert size.total_bytes(low_memory=False) == 8_600_000_000
    assert size.total_bytes(low_memory=True) == 6_600_000_000
    assert size.described(low_memory=False) == (
        "500x500 takes 8.6 GB: 6 GB of weights, 2 GB of scratch (unet), 0.5 GB of latents, inputs "
        "and images, and 0.1 GB kept for captured graphs"
    )
    assert "4 GB of weights, scratch, 0.5 GB" in needs(500, None).described(low_memory=True)


def test_what_was_measured_takes_the_place_of_the_allowance() -> None:
    little, much = (replace(needs(500), overhead_bytes=GB // part) for part in (20, 2))
    assert little.total_bytes(low_memory=False) == 8_600_000_000
    assert "0.1 GB kept for captured graphs" in little.described(low_memory=False)
    assert much.total_bytes(low_memory=False) == 9_000_000_000
    assert much.described(low_memory=False).endswith(
        "and 0.5 GB that contexts, kernels and graphs were measured to take"
    )


def test_sizes_that_do_not_fit_are_refused_with_what_would() -> None:
    budget = MemoryBudget([needs(500), needs(1000)], 9 * GB, "memory_bytes")
    assert [size.name for size in budget.fitting()] == ["500x500"]
    budget.check(500, 500)
    budget.check(12, 12)  # which is for others to refuse
    with pytest.raises(OutOfMemoryError) as caught:
        budget.check(1000, 1000)
    message = str(caught.value)
    assert message.startswith("memory: 1000x1000 takes 9.1 GB: 6 GB of weights, 2 GB of scratch")
    assert "; 9 GB may be used (memory_bytes). What fits or takes less: " in message
    assert "low_memory=True (--low-memory), 7.1 GB; a size of 500x500; a bundle built" in message


def test_memory_that_nothing_fits_into() -> None:
    with pytest.raises(OutOfMemoryError, match=r"500x500 takes 8\.6 GB.*low_memory=True.*6\.6 GB"):
        MemoryBudget([needs(1000), needs(500)], 7 * GB, "free on the GPU")
    assert MemoryBudget([needs(500)], 7 * GB, "free", low_memory=True).fitting()
    with pytest.raises(OutOfMemoryError) as caught:
        MemoryBudget([needs(500)], 6 * GB, "free", low_memory=True)
    assert "low_memory=True" not in str(caught.value) and "a size of" not in str(caught.value)
    # What engines say once they are open may be more than was foretold.
    budget = MemoryBudget([needs(500, GB)], 8 * GB, "free")
    with pytest.raises(OutOfMemoryError, match="2 GB of scratch"):
        budget.update([needs(500)])


@pytest.fixture
def bundle() -> Bundle:
    return Bundle.__new__(Bundle)  # nobody reads it


def test_backends_of_the_processor_do_not_plan(bundle: Bundle) -> None:
    OpenVinoBackend().open(bundle).budget.check(512, 512)
    with pytest.raises(ConfigError, match=r"memory_bytes: 1000 .* None with backend openvino"):
        OpenVinoBackend().open(bundle, SessionOptions(memory_bytes=1000))
    for name in ("native", "openvino", "torch"):
        with pytest.raises(ConfigError, match=f"device: 0 .* None with backend {name}"):
            get_backend(name).open(bundle, SessionOptions(device=0))


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8GiB", 1 << 50])
@pytest.mark.parametrize("name", ["openvino", "native"])
def test_what_is_no_number_of_bytes(bundle: Bundle, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"memory_bytes: .* expected a number of bytes from 1"):
        get_backend(name).open(bundle, SessionOptions(memory_bytes=value))
