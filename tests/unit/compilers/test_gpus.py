"""Names of GPUs."""

from __future__ import annotations

import pytest

from sdengine.compilers.tensorrt.gpus import compute_capabilities, compute_capability
from sdengine.errors import ConfigError

RTX = (75, 80, 86, 89, 120, 121)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sm89", 89),
        ("SM_89", 89),
        ("8.9", 89),
        ("89", 89),
        ("12.0", 120),
        ("sm120", 120),
        ("rtx4090", 89),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 89),
        ("RTX 4090 D", 89),
        ("rtx-3080-ti", 86),
        ("RTX 2080 Ti", 75),
        ("RTX 5090 Laptop", 120),
        ("A100", 80),
        ("Tesla T4", 75),
        ("L40S", 89),
        ("RTX 6000 Ada", 89),
        ("h100", 90),
    ],
)
def test_names(name: str, expected: int) -> None:
    assert compute_capability(name) == expected


@pytest.mark.parametrize("name", ["", "gpu", "rtx", "ti", "sm", "sm61", "6.1", "rtx9090", "d" * 99])
def test_unknown_names_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(ConfigError, match=r"gpu: .* is not accepted; expected .*rtx4090.*rtx5090"):
        compute_capability(name)


def test_lists_are_sorted_and_without_doubles() -> None:
    assert compute_capabilities(["rtx4090", "sm86", "l4"], "tensorrt-rtx", RTX) == [86, 89]
    assert compute_capabilities([], "tensorrt-rtx", RTX) == []


def test_a_gpu_that_the_target_does_not_build_for_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'h100'.*for target tensorrt-rtx: sm75.*9\.0") as caught:
        compute_capabilities(["rtx4090", "h100"], "tensorrt-rtx", RTX)
    assert "sm90" not in str(caught.value)
