"""The group normalisation kernels, interpreted, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.interpreted import (
    DTYPES,
    assert_close_as_torch,
    assert_within_twice,
    hardware_bfloat16,
)

from sdengine.errors import ConfigError
from sdengine.kernels.group_norm import (
    GroupNormShape,
    add_group_norm_silu,
    group_norm_silu,
    variants,
)
from sdengine.kernels.variants import Variant

__all__ = ["hardware_bfloat16"]
EPS = 1e-5
RESIDENT = Variant("resident", {"BLOCK_P": 128, "RESIDENT": 1}, 4, 1, 1024)
LOOPED = Variant("looped", {"BLOCK_P": 32, "RESIDENT": 0}, 4, 1, 1024)
SPLIT = Variant("split", {"BLOCK_P": 16, "CHUNK_P": 32}, 4, 1, 1024)
# Tiles of 8 channels: they cut groups, and leave some lanes without channels.
SLAB = Variant("slab", {"SUB_C": 8, "BLOCK_P": 16, "CHUNK_P": 32}, 4, 1, 1024)
VARIANTS = [(v, last) for v in (RESIDENT, LOOPED, SPLIT) for last in (False, True)]
VARIANTS.append((SLAB, True))
OP = "group_norm_silu"

pytestmark = pytest.mark.usefixtures("hardware_bfloat16")


class Case:
    """Arguments, and what torch makes of them."""

    def __init__(
        self,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        num_groups: int,
        channels_last: bool = False,
        adds: bool = False,
        embeds: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = (shape, shape[1:2], shape[1:2], shape, shape[:2])
        made = [torch.randn(size, generator=generator).to(dtype) for size in shapes]
        if channels_last:
            made = [t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for t in made]
        self.x, self.weight, self.bias = made[:3]
        self.residual = made[3] if adds else None
        self.embedding = made[4] if embeds else None
        self.num_groups = num_groups

    def torchs(self, dtype: torch.dtype, silu: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the activated map and the sum, computed by torch in a data type."""
        total = self.x.to(dtype)
        if self.residual is not None:
            total = total + self.residual.to(dtype)
        if self.embedding is not None:
            total = total + self.embedding.to(dtype).reshape(*total.shape[:2], 1, 1)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        y = F.group_norm(total, self.num_groups, weight, bias, EPS)
        return (F.silu(y) if silu else y), total

    def ours(self, variant: Variant | None, silu: bool = True) -> torch.Tensor:
        """Return what the kernel computes."""
        y: torch.Tensor = group_norm_silu(
            self.x,
            self.weight,
            self.bias,
            self.num_groups,
            EPS,
            silu,
            residual=self.residual,
            time_embedding=self.embedding,
            variant=variant,
        )
        return y

    def check(self, variant: Variant | None, silu: bool = True) -> None:
        """Compare the two."""
        actual = self.ours(variant, silu)
        torchs, truth = self.torchs(self.x.dtype, silu)[0], self.torchs(torch.float64, silu)[0]
        assert_close_as_torch(OP, actual, torchs, truth)
        assert actual.stride() == self.x.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("variant", "channels_last"), VARIANTS, ids=lambda v: v.name if isinstance(v, Variant) else v
)
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [
        ((2, 40, 5, 7), 4),  # groups of 10 channels
        ((1, 60, 9, 9), 3),  # of 20
        ((1, 60, 8, 8), 2),  # of 30, no ragged tile
        ((3, 80, 3, 3), 2),  # of 40
        ((1, 8, 7, 11), 8),  # of 1
        ((2, 6, 1, 33), 2),  # of 3, one position more than a chunk
    ],
)
def test_ragged_sizes(
    dtype: torch.dtype,
    channels_last: bool,
    variant: Variant,
    shape: tuple[int, ...],
    num_groups: int,
) -> None:
    Case(dtype, shape, num_groups, channels_last).check(variant)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("variant", "channels_last"), VARIANTS, ids=lambda v: v.name if isinstance(v, Variant) else v
)
@pytest.mark.parametrize(("adds", "embeds"), [(True, False), (False, True), (True, True)])
def test_additions(
    dtype: torch.dtype, channels_last: bool, variant: Variant, adds: bool, embeds: bool
) -> None:
    case = Case(dtype, (2, 12, 5, 7), 2, channels_last, adds, embeds)
    case.check(variant)
    if case.residual is None:
        return
    out, total = add_group_norm_silu(
        case.x, case.residual, case.weight, case.bias, 2, EPS,
        time_embedding=case.embedding, variant=variant,
    )  # fmt: skip
    assert torch.equal(out, case.ours(variant))
    assert_close_as_torch(OP, total, case.torchs(dtype)[1], case.torchs(torch.float64)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [RESIDENT, LOOPED, SPLIT, SLAB], ids=lambda v: v.name)
@pytest.mark.parametrize(
    ("mean", "deviation"), [(100.0, 0.5), (-1000.0, 1.0), (0.0, 1e-4), (0.0, 1e4), (3.0, 0.0)]
)
def test_extreme_means_and_variances(
    dtype: torch.dtype, variant: Variant, mean: float, deviation: float
) -> None:
    case = Case(dtype, (1, 20, 9, 9), 2, variant is SLAB)
    case.x = (case.x.double() * deviation + mean).to(dtype)
    torchs, truth = case.torchs(dtype)[0], case.torchs(torch.float64)[0]
    assert_within_twice(case.ours(variant), torchs, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [RESIDENT, LOOPED, SPLIT, SLAB], ids=lambda v: v.name)
def test_one_channel_a_hundred_times_the_others(dtype: torch.dtype, variant: Variant) -> None:
    case = Case(dtype, (1, 20, 9, 9), 2, variant is SLAB)
    case.x[:, 13] *= 100
    case.check(variant)


@pytest.mark.parametrize("variant", [RESIDENT, LOOPED, SPLIT, SLAB], ids=lambda v: v.name)
def test_without_silu(variant: Variant) -> None:
    Case(torch.float16, (2, 40, 5, 7), 4, variant is SLAB).check(variant, silu=False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "num_groups"),
    [
        ((1, 80, 1, 1), 8),
        ((1, 40, 24, 24), 2),
        ((1, 64, 24, 23), 1),
        ((2, 320, 12, 11), 32),  # tiles of 64 channels cut groups of 10
    ],
)
def test_chosen_variants(shape: tuple[int, ...], num_groups: int, channels_last: bool) -> None:
    sizes = GroupNormShape(shape[0], shape[1], shape[2] * shape[3], num_groups, channels_last)
    case = Case(torch.float16, shape, num_groups, channels_last)
    for variant in (None, *variants(sizes, "float16", None)):
        case.check(variant)


def test_no_images() -> None:
    x, ones = torch.zeros(0, 8, 3, 3), torch.ones(8)
    assert group_norm_silu(x, ones, ones, 2, EPS).shape == x.shape


def test_refuses() -> None:
    x, ones = torch.zeros(1, 6, 2, 4), torch.ones(6)
    with pytest.raises(ConfigError, match="6 channels do not split into 4 groups"):
        group_norm_silu(x, ones, ones, 4, EPS)
    with pytest.raises(ConfigError, match=r"^weight: .* expected \[6\] of type float32"):
        group_norm_silu(x, ones.half(), ones, 2, EPS)
    with pytest.raises(ConfigError, match=r"^embedding: .* expected \[1, 6\]"):
        group_norm_silu(x, ones, ones, 2, EPS, time_embedding=ones)
    with pytest.raises(ConfigError, match=r"^x\.stride\(\): .* contiguous"):
        group_norm_silu(x.transpose(2, 3), ones, ones, 2, EPS)
    with pytest.raises(ConfigError, match=r"^residual\.stride\(\): .* memory layout of x"):
        last = torch.zeros_like(x).to(memory_format=torch.channels_last)
        add_group_norm_silu(x, last, ones, ones, 2, EPS)
    with pytest.raises(ConfigError, match=r"^x: "):
        group_norm_silu(ones, ones, ones, 2, EPS)
