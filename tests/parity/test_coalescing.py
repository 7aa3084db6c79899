"""Group normalisation of NHWC maps uses nearly all of every sector of memory that it touches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import interpreted  # noqa: F401  (skips where kernels are not interpreted)
from support.coalescing import Access, Layout, compiled_code, layouts, ratio, recorded

from sdengine.kernels import group_norm, launching
from sdengine.kernels.group_norm import GroupNormShape
from sdengine.kernels.variants import Variant

MOST_BYTES_OF_SECTORS_FOR_A_BYTE = 1.2
CC = 90
# Maps of SD 1.5 and SDXL; what reads them is the same for one image and fewer positions.
SHAPES = [
    GroupNormShape(2, 320, 4096, 32, True),
    GroupNormShape(2, 640, 1024, 32, True, time_embedding=True),
    GroupNormShape(2, 960, 4096, 32, True, True, True, True),
    GroupNormShape(2, 1280, 64, 32, True),
    GroupNormShape(1, 128, 1 << 18, 32, True),
]
# How a program of one group reads NHWC: what the gate is there to refuse.
ONE_GROUP = Variant("split", {"BLOCK_P": 128, "CHUNK_P": 256}, 8, 1, 1024)


def accesses_of(shape: GroupNormShape, variant: Variant) -> list[list[Access]]:
    """Return the accesses of each of a variant's kernels on one image."""
    generator = torch.Generator().manual_seed(0)

    def made() -> torch.Tensor:
        values = torch.randn((1, 1, shape.positions, shape.channels), generator=generator)
        return values.half().permute(0, 3, 1, 2)

    ones = torch.ones(shape.channels).half()
    options: dict[str, Any] = {"variant": variant}
    if shape.time_embedding:
        options["time_embedding"] = torch.ones(1, shape.channels).half()
    found: list[list[Access]] = []
    launch = launching.launch

    def launch_and_record(*arguments: Any) -> None:
        found.append([])
        with recorded(found[-1]):
            launch(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "launch", launch_and_record)
        if shape.total:
            group_norm.add_group_norm_silu(
                made(), made(), ones, ones, shape.num_groups, 1e-5, **options
            )
        else:
            group_norm.group_norm_silu(made(), ones, ones, shape.num_groups, 1e-5, **options)
    return found


def test_nhwc_maps_are_read_and_written_by_whole_sectors(tmp_path: Path) -> None:
    cases = [
        (CC, shape, variant)
        for shape in SHAPES
        for variant in group_norm.variants(shape, "float16", CC)
    ]
    cases.append((CC, SHAPES[0], ONE_GROUP))
    codes = iter(compiled_code(cases, tmp_path))
    ratios = []
    for _, shape, variant in cases:
        positions = min(shape.positions, variant.constants.get("CHUNK_P", shape.positions))
        for accesses in accesses_of(replace(shape, positions=positions), variant):
            known = layouts(next(codes))
            ratios.append((ratio(accesses, known), shape, variant.name, len(accesses)))
    for found, *what in ratios[:-2]:
        assert found <= MOST_BYTES_OF_SECTORS_FOR_A_BYTE, what
    for found, *what in ratios[-2:]:
        assert found > 1.5, what


def test_what_is_counted() -> None:
    import numpy as np

    layout = Layout((1, 8), (4, 8), (1, 1), (1, 0))
    rows, columns = np.meshgrid(np.arange(4), np.arange(64), indexing="ij")
    every = np.ones((4, 64), bool)
    whole = Access("load", 4096 + 2 * (rows * 64 + columns), every, 2)
    known = {whole.key: layout}
    assert ratio([whole], known) == 1.0
    # Rows of 10 numbers every 640: 20 bytes of one sector or two.
    few = Access("load", 4096 + 2 * (rows * 320 + columns), every & (columns < 10), 2)
    assert ratio([few], known) == pytest.approx(32 / 20)
    # Lanes that hold one number each ask in eight turns for the same sectors.
    narrow = {whole.key: Layout((1, 1), (1, 32), (1, 1), (1, 0))}
    assert ratio([whole], narrow) == 1.0
    across = {whole.key: Layout((1, 1), (4, 8), (1, 1), (0, 1))}
    assert ratio([whole], across) == 2.0
