"""What the kernels' package needs and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdengine.kernels import attention, group_norm_silu


def test_import_needs_neither_torch_nor_triton(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "import sdengine.kernels\n"
        "assert callable(sdengine.kernels.attention)"
    )
    # Elsewhere, because Python finds the source folder before the installed package.
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 8), (4, 8), (4, 8)],
        [(1, 2, 4, 8), (1, 2, 4, 7), (1, 2, 4, 8)],
        [(1, 2, 4, 8), (1, 1, 4, 8), (1, 1, 4, 8)],
        [(1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 5, 8)],
        [(1, 2, 4, 8), (1, 2, 0, 8), (1, 2, 0, 8)],
    ],
)
def test_attention_refuses(shapes: list[tuple[int, ...]]) -> None:
    q, k, v = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"^q, k, v: have shapes"):
        attention(q, k, v)


def test_group_norm_silu_refuses() -> None:
    x, ones = torch.zeros(1, 6, 2, 2), torch.ones(6)
    with pytest.raises(ValueError, match="does not split into 4 groups"):
        group_norm_silu(x, ones, ones, 4, 1e-5)
    with pytest.raises(ValueError, match="does not split into 0 groups"):
        group_norm_silu(x, ones, ones, 0, 1e-5)
    with pytest.raises(ValueError, match=r"weight, bias: .* expected \[6\]"):
        group_norm_silu(x, torch.ones(5), ones, 2, 1e-5)
