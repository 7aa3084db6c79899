"""Triton kernels, timed on a GPU against what torch computes the same with.

    python benchmarks/kernel_speed.py [--cases attention] [--output DIR]

On the shapes of SD 1.5 and SDXL, each variant is first compared with fp32 and only then timed.
A CUDA graph holds many calls and nothing else, so that neither the host's time nor a launch's
counts; the calls take turns on copies of the tensors that are larger together than the L2 cache,
as every call in a network finds its own. The roofline is measured too: the memory's by a copy, the
arithmetic's by a large product. Needs a GPU; there is no other mode.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdengine.backends.torch.variant_timing import Timer, graph_timer
from sdengine.benchmarks import gpu
from sdengine.benchmarks.kernel_resources import CASES as RESOURCE_CASES
from sdengine.benchmarks.kernel_sides import (
    EPS,
    kernel,
    tensors_of,
    torchs,
    truth,
)
from sdengine.benchmarks.markdown import table
from sdengine.benchmarks.measures import Spread
from sdengine.benchmarks.records import RESULTS, append_record, stamped
from sdengine.errors import BackendUnavailableError, DeviceError, SdengineError
from sdengine.kernels.attention import OP as ATTENTION
from sdengine.kernels.geglu import GegluShape
from sdengine.kernels.group_norm import GroupNormShape
from sdengine.kernels.layer_norm import LayerNormShape
from sdengine.kernels.registry import OPS

if TYPE_CHECKING:
    from torch import Tensor

CASES: tuple[tuple[str, str, Any], ...] = (
    *RESOURCE_CASES,
    ("group_norm_silu", "SDXL 1024², 128², NHWC", GroupNormShape(2, 320, 16384, 32, True)),
    (
        "group_norm_silu",
        "SDXL 1024², 64², NHWC, embedding",
        GroupNormShape(2, 640, 4096, 32, True, time_embedding=True),
    ),
    ("group_norm_silu", "SDXL 1024², 32², NHWC", GroupNormShape(2, 1280, 1024, 32, True)),
    ("layer_norm", "SDXL 1024², 64², residual", LayerNormShape(2 * 4096, 640, True)),
    ("layer_norm", "SDXL 1024², 32², residual", LayerNormShape(2 * 1024, 1280, True)),
    ("geglu", "SDXL 1024², 64²", GegluShape(2 * 4096, 2560)),
    ("geglu", "SDXL 1024², 32²", GegluShape(2 * 1024, 5120)),
)
# A kernel may be at most this many times as wrong as torch is in the same precision.
MAX_ERROR_RATIO = 2.0
_RUNS = 15
_CACHE_BYTES = 256 << 20  # more than any GPU's L2
_COPIED_BYTES = 1 << 30
_PRODUCT_SIDE = 8192


@dataclass(frozen=True)
class Roofline:
    """What the GPU moves and computes at best, as measured here.

    Args:
        memory_gb_s: 1e9 bytes read or written a second, copying.
        tflops: 1e12 operations a second, multiplying 16-bit matrices.
    """

    memory_gb_s: float
    tflops: float

    def bound_ms(self, op: str, moved: int, operations: int) -> float:
        """Return the least time an operation takes; only attention's is done by tensor cores."""
        memory_ms = moved / self.memory_gb_s / 1e6
        return max(memory_ms, operations / self.tflops / 1e9 if op == ATTENTION else 0.0)


@dataclass(frozen=True)
class Row:
    """One case in one precision.

    Args:
        error, torch_error: root mean square, relative, against fp32.
        kernel_ms, torch_ms: of the variant that is taken where none was measured, and of torch.
        variant: its name.
        best, best_ms: the variant that was fastest here.
        bound_ms: the roofline's.
    """

    op: str
    case: str
    dtype: str
    error: float
    torch_error: float
    variant: str
    kernel_ms: dict[str, float]
    best: str
    best_ms: float
    torch_ms: dict[str, float]
    bound_ms: float

    @property
    def ratio(self) -> float:
        """How many times as fast as torch."""
        return self.torch_ms["median"] / self.kernel_ms["median"]

    @property
    def percent_of_roofline(self) -> float:
        """The roofline's time in percent of the kernel's."""
        return 100 * self.bound_ms / self.kernel_ms["median"]


def measure(
    case: tuple[str, str, Any], dtype: str, cc: int | None, roofline: Roofline, timer: Timer,
    device: str = "cuda", cache_bytes: int = _CACHE_BYTES,
) -> Row:  # fmt: skip
    """Compare all variants of a case with fp32, then time them and torch.

    Args:
        case: operation, name, shape.
        dtype: float16 or bfloat16.
        cc: compute capability times ten.
        roofline: of the GPU.
        timer: gives the milliseconds of a call.
        device: where the tensors are.
        cache_bytes: that calls move before one comes to the same tensors again.

    Raises:
        DeviceError: a variant's error is beyond twice torch's; nothing of the case was timed.
    """
    op, name, shape = case
    tensors = tensors_of(op, shape, dtype, device)
    exact = truth(op, shape, tensors)
    torch_error = relative_error(torchs(op, shape, tensors)(), exact)
    variants = OPS[op].variants(shape, dtype, cc)
    errors = [relative_error(kernel(op, shape, tensors, v)(), exact) for v in variants]
    for variant, error in zip(variants, errors, strict=True):
        if not error <= MAX_ERROR_RATIO * torch_error:
            raise DeviceError(
                f"{op}, {name}, {dtype}: variant {variant.name} is wrong by {error:.3g}, torch by "
                f"{torch_error:.3g}; nothing of this case was timed."
            )
    moved, operations = OPS[op].cost(shape, dtype)
    copies = [{name: tensor.clone() for name, tensor in tensors.items()}
              for _ in range(-(-cache_bytes // moved))]  # fmt: skip
    samples = [timer([kernel(op, shape, t, variant) for t in copies]) for variant in variants]
    medians = [Spread.of(sample).median for sample in samples]
    fastest = min(range(len(medians)), key=medians.__getitem__)
    return Row(
        op,
        name,
        dtype,
        max(errors),
        torch_error,
        variants[0].name,
        asdict(Spread.of(samples[0])),
        variants[fastest].name,
        medians[fastest],
        asdict(Spread.of(timer([torchs(op, shape, t) for t in copies]))),
        roofline.bound_ms(op, moved, operations),
    )


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Return the root mean square error relative to that of the exact values."""
    difference = (actual.double() - exact.double()).square().mean().sqrt()
    error = float(difference / exact.double().square().mean().sqrt())
    return error if math.isfinite(error) else math.inf


def cold_times(runs: int = _RUNS, cuda: Any = None) -> Timer:
    """Return the backend's timer with a cold cache before each run; see `graph_timer`.

    Calls that take turns on tensors write their results to memory that no cache holds either.

    Args:
        runs: counted, after a warm-up.
        cuda: torch's interface to graphs and events; None is `torch.cuda`.
    """
    import torch

    device = "cuda" if cuda is None else "cpu"
    numbers = _CACHE_BYTES // 4 if cuda is None else 1
    # It is read, not written: what a cache has to write back would be charged to the kernel.
    flush, sink = torch.zeros(numbers, device=device), torch.zeros((), device=device)
    return graph_timer(cuda or torch.cuda, runs, lambda: torch.sum(flush, 0, out=sink))


def measure_roofline(timer: Timer) -> Roofline:
    """Return what copying memory and multiplying large matrices reach on this GPU."""
    import torch

    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_ms = min(timer([functools.partial(target.copy_, source)]))
    del source, target
    side = _PRODUCT_SIDE
    a, b = (torch.randn(side, side, dtype=torch.float16, device="cuda") for _ in range(2))
    product_ms = min(timer([lambda: a @ b]))
    return Roofline(2 * _COPIED_BYTES / copy_ms / 1e6, 2 * side**3 / product_ms / 1e9)


def skipped(dtype: str, cc: int | None, cases: Iterable[tuple[str, str, Any]]) -> Iterator[str]:
    """Yield a line for each case that no kernel computes on this GPU, with the reason."""
    for op, name, shape in cases:
        supported, reason = OPS[op].supports(shape, dtype, cc)
        if not supported:
            yield f"{op}, {name}, {dtype}: {reason}"


def as_markdown(rows: Sequence[Row], roofline: Roofline, device: str) -> str:
    """Return the rows as a Markdown table with a line on how to read it."""
    columns = ["operation", "case", "type", "Triton, ms", "torch, ms", "ratio", "of the roofline"]
    cells = [
        [
            row.op,
            row.case,
            row.dtype,
            _spread(row.kernel_ms),
            _spread(row.torch_ms),
            f"{row.ratio:.2f}x",
            f"{row.percent_of_roofline:.0f} %",
            "the default" if row.best == row.variant else f"{row.best}, {row.best_ms:.3f} ms",
            f"{row.error:.1e}",
            f"{row.torch_error:.1e}",
        ]
        for row in rows
    ]
    n = rows[0].kernel_ms["n"] if rows else 0
    return (
        f"**Triton kernels on {device}**\n\n"
        + table([*columns, "fastest variant", "error, Triton", "error, torch"], cells, texts=3)
        + f"\n\nMedian (10th to 90th percentile) of {n} runs with a cold cache; torch is its fused "
        "attention, or its operations one after the other. Roofline as measured: "
        f"{roofline.memory_gb_s:.0f} GB/s, {roofline.tflops:.0f} TFLOPS in fp16. Errors are "
        "relative RMS against fp32."
    )


def _spread(figures: dict[str, float]) -> str:
    return f"{figures['median']:.3f} ({figures['p10']:.3f} to {figures['p90']:.3f})"


def require_gpu() -> int:
    """Return the GPU's compute capability times ten.

    Raises:
        BackendUnavailableError: there is none that torch and triton can use.
    """
    from sdengine.backends import get_backend

    usable, reason = get_backend("triton").available()
    if not usable:
        raise BackendUnavailableError(f"kernels are timed on an NVIDIA GPU only: {reason}")
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 where a kernel is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default="", help="only those whose operation and name have this")
    parser.add_argument("--dtypes", default="float16,bfloat16")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    try:
        cc = require_gpu()
    except SdengineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    chosen = [case for case in CASES if options.cases in f"{case[0]} {case[1]}"]
    timer = cold_times()
    roofline = measure_roofline(timer)
    rows, wrong = [], []
    for dtype in options.dtypes.split(","):
        for line in skipped(dtype, cc, chosen):
            print(f"skipped: {line}", file=sys.stderr)
        for case in chosen:
            if not OPS[case[0]].supports(case[2], dtype, cc)[0]:
                continue
            print(f"{case[0]}, {case[1]}, {dtype}", file=sys.stderr)
            try:
                rows.append(measure(case, dtype, cc, roofline, timer))
            except DeviceError as error:
                wrong.append(str(error))
    write(rows, roofline, options.output)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def write(rows: Sequence[Row], roofline: Roofline, folder: Path) -> None:
    """Write one JSON line a row, and the table; print the table."""
    place = gpu.describe()
    common = {"roofline": asdict(roofline), "eps": EPS, "gpu": place}
    records = folder / "kernel-speed.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    records.unlink(missing_ok=True)
    for row in rows:
        ratios = {"ratio": row.ratio, "percent_of_roofline": row.percent_of_roofline}
        append_record(stamped({**asdict(row), **ratios, **common}, "triton"), records)
    shown = as_markdown(rows, roofline, place["name"])
    (folder / "kernel-speed.md").write_text(shown + "\n", encoding="utf-8")
    print(shown)


if __name__ == "__main__":
    sys.exit(main())
