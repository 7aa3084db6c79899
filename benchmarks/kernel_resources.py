"""Resources of the Triton kernels: every variant compiled for every target, and what it needs.

    python benchmarks/kernel_resources.py      # the tables and the records; minutes, no GPU

Registers and spills are the assembler's; which instructions there are is what the disassembler
tells. Blocks and warps that fit a multiprocessor follow from the limits in
`sdengine.kernels.targets`. Bytes and operations are counted from the shapes; the bound is where
they stand against the published peaks of the target's reference GPU. No time is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.records import RESULTS
from sdengine.kernels import attention, geglu, group_norm, layer_norm
from sdengine.kernels.attention import AttentionShape
from sdengine.kernels.compiling import CompiledKernel, compile_kernel
from sdengine.kernels.geglu import GegluShape
from sdengine.kernels.group_norm import GroupNormShape
from sdengine.kernels.layer_norm import LayerNormShape
from sdengine.kernels.registry import OPS
from sdengine.kernels.sass import ledger
from sdengine.kernels.targets import PORTABLE_SHARED_BYTES, TARGETS, WARP_SIZE, target_of
from sdengine.kernels.variants import Specialisation

EPS = 1e-5
# (operation, where it stands, shape); two images at once are those of classifier-free guidance.
CASES: tuple[tuple[str, str, Any], ...] = (
    ("attention", "SD1.5 512², self, 64²", AttentionShape(2, 8, 4096, 4096, 40)),
    ("attention", "SD1.5 512², cross, 64²", AttentionShape(2, 8, 4096, 77, 40)),
    ("attention", "SD1.5 1024², self, 128²", AttentionShape(2, 8, 16384, 16384, 40)),
    ("attention", "SD1.5 512², self, 32²", AttentionShape(2, 8, 1024, 1024, 80)),
    ("attention", "SD1.5 512², cross, 32²", AttentionShape(2, 8, 1024, 77, 80)),
    ("attention", "SD1.5 512², self, 16²", AttentionShape(2, 8, 256, 256, 160)),
    ("attention", "SD1.5 512², cross, 16²", AttentionShape(2, 8, 256, 77, 160)),
    ("attention", "SDXL 1024², self, 64²", AttentionShape(2, 10, 4096, 4096, 64)),
    ("attention", "SDXL 1024², cross, 64²", AttentionShape(2, 10, 4096, 77, 64)),
    ("attention", "SDXL 1024², cross, 32², 3 chunks", AttentionShape(2, 20, 1024, 231, 64)),
    ("attention", "CLIP ViT-L text encoder", AttentionShape(2, 12, 77, 77, 64, causal=True)),
    ("attention", "heads of 128, 64²", AttentionShape(2, 10, 4096, 4096, 128)),
    ("attention", "VAE 512², 64²", AttentionShape(1, 1, 4096, 4096, 512)),
    ("attention", "VAE 1024², 128²", AttentionShape(1, 1, 16384, 16384, 512)),
    ("group_norm_silu", "SD1.5 512², 64², NHWC", GroupNormShape(2, 320, 4096, 32, True)),
    ("group_norm_silu", "SD1.5 512², 64², NCHW", GroupNormShape(2, 320, 4096, 32)),
    (
        "group_norm_silu",
        "SD1.5 512², 64², NHWC, additions",
        GroupNormShape(2, 960, 4096, 32, True, True, True, True),
    ),
    (
        "group_norm_silu",
        "SD1.5 512², 32², NHWC, embedding",
        GroupNormShape(2, 640, 1024, 32, True, time_embedding=True),
    ),
    ("group_norm_silu", "SD1.5 512², 8², NHWC", GroupNormShape(2, 1280, 64, 32, True)),
    ("group_norm_silu", "SD1.5 512², 8², NCHW", GroupNormShape(2, 1280, 64, 32)),
    ("group_norm_silu", "VAE 512², 512², NHWC", GroupNormShape(1, 128, 512 * 512, 32, True)),
    ("group_norm_silu", "VAE 1024², 1024², NCHW", GroupNormShape(1, 128, 1024 * 1024, 32)),
    ("layer_norm", "SD1.5 512², 64²", LayerNormShape(2 * 4096, 320)),
    ("layer_norm", "SD1.5 512², 64², residual", LayerNormShape(2 * 4096, 320, True)),
    ("layer_norm", "SD1.5 512², 16², residual", LayerNormShape(2 * 256, 1280, True)),
    ("geglu", "SD1.5 512², 64²", GegluShape(2 * 4096, 1280)),
    ("geglu", "SD1.5 512², 16²", GegluShape(2 * 256, 5120)),
)
_TENSOR_CORE = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


@dataclass(frozen=True)
class Row:
    """What one kernel needs on one target."""

    op: str
    kernel: str
    case: str
    variant: str
    dtype: str
    cc: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    declared_shared_bytes: int
    threads: int
    blocks_per_sm: int
    warps_per_sm: int
    tensor_core_instructions: int
    sass: Mapping[str, Any] | None = None  # a `Ledger`; records of older releases have none


def specialisations(op: str, shape: Any, dtype: str, cc: int) -> Iterator[Specialisation]:
    """Yield what to compile for all variants of a case, the default variant's first."""
    for variant in OPS[op].variants(shape, dtype, cc):
        if op == attention.OP:
            yield attention.specialise(shape, dtype, variant)
        elif op == layer_norm.OP:
            yield layer_norm.specialise(shape, dtype, variant, EPS)
        elif op == geglu.OP:
            yield geglu.specialise(shape, dtype, variant)
        elif group_norm.is_split(variant):
            yield group_norm.specialise_partial(shape, dtype, variant)
            yield group_norm.specialise_apply(shape, dtype, variant, EPS)
        else:
            yield group_norm.specialise(shape, dtype, variant, EPS)


def compile_rows(
    cases: tuple[tuple[str, str, Any], ...], ccs: list[int], dtypes: list[str]
) -> Iterator[Row]:
    """Compile what the cases need, each machine code once."""
    done = set()
    for op, label, shape in cases:
        for dtype in dtypes:
            for cc in ccs:
                if not OPS[op].supports(shape, dtype, cc)[0]:
                    continue
                for specialisation in specialisations(op, shape, dtype, cc):
                    key = (cc, dtype, specialisation.function, str(specialisation))
                    if key in done:
                        continue
                    done.add(key)
                    compiled = compile_kernel(specialisation, cc)
                    yield row_of(specialisation, compiled, cc, label, dtype)


def row_of(
    specialisation: Specialisation,
    compiled: CompiledKernel,
    cc: int,
    label: str,
    dtype: str,
) -> Row:
    """Return the figures of one compiled kernel."""
    warps = compiled.threads // WARP_SIZE
    blocks = target_of(cc).blocks_per_sm(warps, compiled.registers, compiled.shared_bytes)
    return Row(
        specialisation.op,
        specialisation.function.partition(".")[2],
        label,
        specialisation.variant.name,
        dtype,
        cc,
        compiled.registers,
        compiled.spill_bytes,
        compiled.shared_bytes,
        specialisation.variant.shared_bytes,
        compiled.threads,
        blocks,
        blocks * warps,
        len(_TENSOR_CORE.findall(compiled.ptx)),
        # As a record has it: JSON has no keys that are numbers.
        json.loads(json.dumps(asdict(ledger(compiled.cubin)))),
    )


def case_figures(op: str, label: str, shape: Any, dtype: str) -> dict[str, Any]:
    """Return a case's bytes and operations, and what bounds it on each target's GPU."""
    moved, flops = OPS[op].cost(shape, dtype)
    intensity = flops / moved
    bounds = {}
    for target in TARGETS.values():
        supported, reason = OPS[op].supports(shape, dtype, target.cc)
        if not supported:
            bounds[target.name] = f"not supported: {reason}"
        else:
            is_memory = op != attention.OP or intensity < target.ridge_flops_per_byte
            bounds[target.name] = "memory" if is_memory else "arithmetic"
    return {
        "op": op,
        "case": label,
        "dtype": dtype,
        "shape": asdict(shape),
        "bytes": moved,
        "operations": flops,
        "operations_per_byte": round(intensity, 2),
        "bound": bounds,
    }


def problems(rows: list[Row]) -> list[str]:
    """Return what must not be.

    That is: spills, more shared memory than a variant declares, no variant under 48 KiB of it, an
    attention without tensor cores, or with stages that do not load while it computes, an NHWC map
    that is not loaded 16 bytes a thread.
    """
    found = []
    least: dict[tuple[str, str, str, int], int] = {}
    for row in rows:
        name = f"{row.kernel} {row.variant} {row.dtype} for {row.cc}"
        if row.spill_bytes:
            found.append(f"{name} spills {row.spill_bytes} bytes")
        if row.op == attention.OP and row.tensor_core_instructions == 0:
            found.append(f"{name} multiplies without tensor cores")
        found += [f"{name} {problem}" for problem in _sass_problems(row)]
        if row.shared_bytes > row.declared_shared_bytes:
            found.append(f"{name} needs {row.shared_bytes} bytes of shared memory, more than said")
        if row.blocks_per_sm == 0:
            found.append(f"{name} does not fit a multiprocessor")
        key = (row.kernel, row.case, row.dtype, row.cc)
        least[key] = min(least.get(key, row.shared_bytes), row.shared_bytes)
    for (kernel, case, dtype, cc), shared_bytes in least.items():
        if shared_bytes >= PORTABLE_SHARED_BYTES:
            found.append(f"{kernel}, {case}, {dtype} for {cc}: none under 48 KiB of shared memory")
    return found


def _sass_problems(row: Row) -> Iterator[str]:
    if row.sass is None:
        return
    if row.sass["spills"]:
        yield f"has {row.sass['spills']} loads and stores of local memory"
    if row.op == attention.OP and not row.variant.endswith("s1") and not row.sass["async_copies"]:
        yield "has several stages and no asynchronous loads"
    if row.variant.startswith("slab") and "16" not in row.sass["loads"]:
        yield "loads less than 16 bytes a thread"


def _sass_cell(sass: Mapping[str, Any]) -> str:
    products = ", ".join(f"{n} {name}" for name, n in sass["tensor_core"].items()) or "-"
    copies = sum(sass["async_copies"].values())
    widths = [max(map(int, sass[kind]), default=0) for kind in ("loads", "stores")]
    figures = [products, sass["exponentials"], copies, *widths, sass["loop"], sass["instructions"]]
    return " / ".join(map(str, figures))


def as_markdown(rows: list[Row], cases: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown."""
    ccs = sorted({row.cc for row in rows})
    needs: dict[tuple[str, str, str], dict[int, str]] = {}
    codes: dict[tuple[str, str, str], dict[int, str]] = {}
    for row in rows:
        if row.dtype == "float16" and row.sass is not None:
            codes.setdefault((row.kernel, row.case, row.variant), {})[row.cc] = _sass_cell(row.sass)
        if row.dtype == "float16":
            cell = f"{row.registers} / {row.shared_bytes / 1024:.1f} / {row.warps_per_sm}"
            needs.setdefault((row.kernel, row.case, row.variant), {})[row.cc] = cell
    lines = [[*name, *(cells.get(cc, "-") for cc in ccs)] for name, cells in needs.items()]
    capabilities = [f"{cc // 10}.{cc % 10}" for cc in ccs]
    moves = [
        [
            figures["op"],
            figures["case"],
            f"{figures['bytes'] / 1e6:.1f}",
            f"{figures['operations'] / 1e9:.2f}",
            f"{figures['operations_per_byte']:.1f}",
            *(figures["bound"][target_of(cc).name].split(":")[0] for cc in ccs),
        ]
        for figures in cases
        if figures["dtype"] == "float16"
    ]
    units = ["MB", "GFLOP", "FLOP/byte"]
    peaks = "; ".join(
        f"{t.gpu} {t.fp16_tflops:g} TFLOPS, {t.memory_gb_s:g} GB/s ({t.source})"
        for t in TARGETS.values()
        if t in map(target_of, ccs)
    )
    parts = [
        "Registers a thread / KiB of shared memory / warps that fit a multiprocessor, fp16. "
        "No variant spills a register. Computed by the compiler, not measured on a GPU.",
        table(["kernel", "first needed by", "variant", *capabilities], lines, texts=3),
        *_sass_table(codes, ccs),
        "What a case must move and compute, fp16, and what bounds it at the published peaks.",
        table(["operation", "case", *units, *(target_of(cc).gpu for cc in ccs)], moves, texts=2),
        f"Peaks: {peaks}.",
    ]
    return "\n\n".join(parts) + "\n"


def _sass_table(
    codes: Mapping[tuple[str, str, str], Mapping[int, str]], ccs: Sequence[int]
) -> list[str]:
    if not codes:
        return []
    lines = [[*name, *(cells.get(cc, "-") for cc in ccs)] for name, cells in codes.items()]
    columns = ["kernel", "first needed by", "variant", *(f"{cc // 10}.{cc % 10}" for cc in ccs)]
    return [
        "Instructions of the machine code, fp16: tensor core / EX2 / asynchronous copies / bytes "
        "of the widest load / of the widest store / in the longest inner loop / in all.",
        table(columns, lines, texts=3),
    ]


def page(record: Mapping[str, Any]) -> str:
    """Return the tables of a record that was read."""
    return as_markdown([Row(**row) for row in record["resources"]], record["cases"])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="such as 80,89")
    parser.add_argument("--dtypes", default="float16,bfloat16")
    parser.add_argument("--cases", default="", help="only those whose operation and name have this")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    # Triton's next release turns it off where this is not set; see its release notes.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    from triton import __version__

    ccs = [int(cc) for cc in options.targets.split(",")]
    dtypes = options.dtypes.split(",")
    chosen = tuple(case for case in CASES if options.cases in f"{case[0]} {case[1]}")
    rows = list(compile_rows(chosen, ccs, dtypes))
    figures = [case_figures(*case, dtype) for case in chosen for dtype in dtypes]
    text = as_markdown(rows, figures)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "triton": __version__,
        "resources": [asdict(row) for row in rows],
        "targets": [asdict(target) for target in TARGETS.values()],
        "cases": figures,
    }
    path = options.output / "kernel-resources"
    path.with_suffix(".json").write_text(json.dumps(record) + "\n")
    path.with_suffix(".md").write_text(text)
    print(text)
    found = problems(rows)
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
