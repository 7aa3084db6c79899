"""What the kernels' package needs, supports, chooses and refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sdengine.errors import ConfigError
from sdengine.kernels.attention import HEAD_DIMS, VARIANTS, AttentionShape, value_parts
from sdengine.kernels.geglu import GegluShape
from sdengine.kernels.group_norm import GroupNormShape, is_slab, is_split, partials_sizes
from sdengine.kernels.layer_norm import LayerNormShape
from sdengine.kernels.reference import attention, group_norm_silu
from sdengine.kernels.registry import OPS, choose
from sdengine.kernels.targets import PORTABLE_SHARED_BYTES, TARGETS, target_of


def test_import_needs_neither_torch_nor_triton(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['triton'] = None\n"
        "from sdengine.errors import BackendUnavailableError\n"
        "from sdengine.kernels import attention, compiling, geglu, group_norm, registry\n"
        "shape = geglu.GegluShape(4, 8)\n"
        "variant = registry.choose('geglu', shape, 'float16', 89)\n"
        "try:\n"
        "    compiling.compile_kernel(geglu.specialise(shape, 'float16', variant), 89)\n"
        "except BackendUnavailableError as error:\n"
        "    assert 'pip install triton' in str(error)\n"
        "else:\n"
        "    raise AssertionError('compiled without triton')\n"
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


SELF = AttentionShape(2, 8, 4096, 4096, 40)
SHAPES: list[tuple[str, Any]] = [
    ("attention", SELF),
    ("group_norm_silu", GroupNormShape(2, 320, 4096, 32)),
    ("layer_norm", LayerNormShape(8192, 320)),
    ("geglu", GegluShape(8192, 1280)),
]


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "cc", "reason"),
    [
        (
            "attention",
            AttentionShape(1, 1, 4, 4, 96),
            "float16",
            89,
            "head dimension 96 is none of",
        ),
        ("attention", AttentionShape(1, 1, 4, 0, 40), "float16", 89, "there are no keys"),
        ("attention", AttentionShape(65536, 1, 4, 4, 40), "float16", 89, "at most 65535"),
        ("attention", SELF, "float32", 89, "no tensor core products"),
        ("attention", SELF, "float16", 75, "7.5 Triton multiplies without tensor cores"),
        ("attention", SELF, "bfloat16", None, "interpreter multiplies bfloat16 as integers"),
        ("attention", SELF, "float64", 89, "data type float64 is none of"),
        ("group_norm_silu", GroupNormShape(2, 30, 4, 32), "float16", 89, "do not split into 32"),
        ("group_norm_silu", GroupNormShape(2, 32, 4, 0), "float16", 89, "do not split into 0"),
        ("group_norm_silu", GroupNormShape(2, 514, 4, 2), "float16", 89, "257 channels a group"),
        ("group_norm_silu", GroupNormShape(2, 32, 0, 32), "float16", 89, "without positions"),
        ("group_norm_silu", GroupNormShape(1, 128, 2**25, 32), "float16", 89, "at most 2^31"),
        ("group_norm_silu", GroupNormShape(65536, 32, 4, 32), "float16", 89, "at most 65535"),
        ("layer_norm", LayerNormShape(4, 8193), "float16", 89, "rows of 8193"),
        ("layer_norm", LayerNormShape(2**31, 8), "float16", 89, "at most 2147483647"),
        ("layer_norm", LayerNormShape(4, 320), "bfloat16", 75, "no bfloat16 arithmetic"),
        ("layer_norm", LayerNormShape(4, 320), "float16", 70, "older than 7.5"),
        ("geglu", GegluShape(4, 0), "float16", 89, "rows of 0 results"),
        ("geglu", GegluShape(2**31, 4), "float16", 89, "at most 2147483647"),
        ("geglu", GegluShape(4, 4), "int8", 89, "data type int8 is none of"),
    ],
)
def test_what_is_not_supported_says_why(
    op: str, shape: Any, dtype: str, cc: int | None, reason: str
) -> None:
    supported, found = OPS[op].supports(shape, dtype, cc)
    assert not supported
    assert reason in found
    with pytest.raises(ConfigError, match=rf"^{op}: .*{re.escape(reason)}"):
        choose(op, shape, dtype, cc)


@pytest.mark.parametrize(("op", "shape"), SHAPES, ids=lambda value: str(value))
@pytest.mark.parametrize("cc", [80, 86, 89, 90, 100, 120, 121, None])
def test_the_choice_is_the_first_fitting_variant(op: str, shape: Any, cc: int | None) -> None:
    assert OPS[op].supports(shape, "float16", cc) == (True, "")
    found = OPS[op].variants(shape, "float16", cc)
    assert choose(op, shape, "float16", cc) == found[0]
    assert len({variant.name for variant in found}) == len(found) > 1
    if cc is not None:
        limit = target_of(cc).shared_bytes_per_block
        assert all(variant.shared_bytes <= limit for variant in found)


def test_attention_blocks_follow_the_lengths() -> None:
    def block(queries: int, keys: int) -> tuple[int, int]:
        constants = choose("attention", AttentionShape(2, 8, queries, keys, 40), "float16", 89)
        return constants.constants["BLOCK_M"], constants.constants["BLOCK_N"]

    assert block(4096, 4096) == (128, 64)
    assert block(4096, 77) == (128, 32)  # 96 keys computed, not 128
    assert block(64, 64) == (64, 64)


@pytest.mark.parametrize("cc", [80, 86, 89, 90, 100, 103, 120, 121])
def test_attention_of_the_autoencoder_has_blocks_of_64_queries(cc: int) -> None:
    found = OPS["attention"].variants(AttentionShape(1, 1, 4096, 4096, 512), "float16", cc)
    assert max(variant.constants["BLOCK_M"] for variant in found) == 64
    assert value_parts(found[0]) == 1  # which computes each score once


@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
@pytest.mark.parametrize("cc", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("keys", [77, 1024, 4096])
def test_attention_of_u_nets_loads_while_it_multiplies(head_dim: int, cc: int, keys: int) -> None:
    shape = AttentionShape(2, 8, 1024, keys, head_dim)
    assert choose("attention", shape, "float16", cc).num_stages > 1


def test_group_norm_is_split_when_groups_are_few_and_large() -> None:
    def names(channels: int, positions: int) -> list[str]:
        shape = GroupNormShape(2, channels, positions, 32)
        found = OPS["group_norm_silu"].variants(shape, "float16", 89)
        assert is_split(found[0]) == found[0].name.startswith("split")
        return [variant.name.partition("_")[0] for variant in found]

    assert names(1280, 64) == ["resident", "resident", "looped", "looped"]
    assert names(640, 256) == ["resident", "looped", "looped"]
    assert names(320, 4096) == ["split", "looped", "looped"]


@pytest.mark.parametrize(
    ("channels", "positions", "names"),
    [
        (320, 4096, ["slab", "slab"]),
        (1280, 64, ["resident", "resident", "slab"]),  # 80 bytes of a group at each position
        (640, 64, ["slab"]),  # 40
        (2560, 256, ["slab"]),
        (128, 1 << 20, ["slab", "slab"]),
    ],
)
def test_group_norm_of_nhwc_maps_takes_all_channels(
    channels: int, positions: int, names: list[str]
) -> None:
    shape = GroupNormShape(2, channels, positions, 32, True)
    found = OPS["group_norm_silu"].variants(shape, "float16", 89)
    assert [variant.name.partition("_")[0] for variant in found] == names
    for variant in filter(is_slab, found):
        constants = variant.constants
        assert channels % constants["SUB_C"] == 0 and constants["SUB_C"] >= 64
        # 16 bytes for each thread.
        assert constants["SUB_C"] * constants["BLOCK_P"] >= 8 * 32 * variant.num_warps
        chunks = -(-positions // constants["CHUNK_P"])
        assert partials_sizes(shape, variant) == (2, 2, chunks, 32) and chunks <= 128


def test_group_norm_of_very_many_groups_does_without_slabs() -> None:
    shape = GroupNormShape(2, 320, 4096, 160, True)
    assert not any(map(is_slab, OPS["group_norm_silu"].variants(shape, "float16", 89)))


def test_every_head_dimension_has_a_variant_within_portable_shared_memory() -> None:
    assert set(VARIANTS) == set(HEAD_DIMS)
    for head_dim, (main, tail) in HEAD_DIMS.items():
        assert main + tail == head_dim
        assert min(v.shared_bytes for v in VARIANTS[head_dim]) < PORTABLE_SHARED_BYTES


def test_choose_refuses() -> None:
    with pytest.raises(ConfigError, match=r"^op: 'softmax' .* attention, group_norm_silu"):
        choose("softmax", SELF, "float16", 89)
    with pytest.raises(ConfigError, match=r"^shape: .* a GegluShape"):
        choose("geglu", SELF, "float16", 89)


def test_targets() -> None:
    assert target_of(87).cc == 86
    assert target_of(121).cc == 120
    assert target_of(89).name == "8.9"
    with pytest.raises(ConfigError, match=r"^cc: 70 "):
        target_of(70)


@pytest.mark.parametrize(
    ("cc", "warps", "registers", "shared_bytes", "blocks"),
    [
        (89, 4, 32, 0, 12),  # 48 warps
        (80, 1, 16, 0, 32),  # 32 blocks
        (89, 4, 168, 0, 3),  # 65,536 registers
        (89, 4, 32, 49 * 1024, 2),  # 100 KiB, 1 of each block reserved
        (75, 4, 32, 32 * 1024, 2),  # 64 KiB, nothing reserved
        (89, 4, 32, 100 * 1024, 0),
        (90, 8, 255, 0, 1),
    ],
)
def test_blocks_per_sm(cc: int, warps: int, registers: int, shared_bytes: int, blocks: int) -> None:
    assert TARGETS[cc].blocks_per_sm(warps, registers, shared_bytes) == blocks


def test_costs_are_counted() -> None:
    moved, operations = OPS["attention"].cost(AttentionShape(1, 1, 2, 3, 40), "float16")
    assert (moved, operations) == ((2 + 3 + 3 + 2) * 40 * 2, 2 * 2 * 2 * 3 * 40)
    causal = AttentionShape(1, 1, 3, 3, 40, causal=True)
    assert OPS["attention"].cost(causal, "float16")[1] == 4 * 6 * 40
    shape = GroupNormShape(1, 4, 10, 2, residual=True, total=True)
    assert OPS["group_norm_silu"].cost(shape, "float16")[0] == (4 * 40 + 8) * 2
    assert OPS["layer_norm"].cost(LayerNormShape(3, 8), "bfloat16")[0] == (2 * 24 + 16) * 2
    assert OPS["geglu"].cost(GegluShape(3, 8), "float16")[0] == 3 * 24 * 2
