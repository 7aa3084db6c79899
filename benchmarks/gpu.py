"""GPU measurements: waiting for the GPU, its memory, exact products, its name."""

from __future__ import annotations

import functools
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sdengine.backends import get_backend
from sdengine.errors import BackendUnavailableError

if TYPE_CHECKING:
    import sdengine
    from sdengine.images.result import Result
    from sdengine.images.timings import Timings
    from sdengine.request.request import Request

TORCH_BACKENDS = ("torch-cuda", "triton")
GPU_BACKENDS = (*TORCH_BACKENDS, "tensorrt-rtx", "tensorrt")


def require_backends(*names: str) -> None:
    """Refuse to go on where one of a GPU's backends cannot run here.

    Raises:
        BackendUnavailableError: which and why.
    """
    for name in names:
        usable, reason = get_backend(name).available()
        if not usable:
            raise BackendUnavailableError(
                f"backend {name} is not available: {reason} Nothing was built or measured."
            )


def timed(
    engine: sdengine.Engine, request: Request, synchronize: Callable[[], None] | None = None
) -> tuple[Result, Timings]:
    """Serve a request on an idle GPU; return what came of it and where the time went.

    What a request left running when it returned counts as its time, outside the networks.

    Args:
        engine: of any side.
        request: what to ask for.
        synchronize: waits until the GPU is idle, whoever gave it work; None is torch's.
    """
    wait = synchronize or _synchronize
    wait()
    result = engine.run(request)
    returned = time.perf_counter()
    wait()
    late_ms = (time.perf_counter() - returned) * 1e3
    return result, replace(result.timings, total_ms=result.timings.total_ms + late_ms)


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


@contextmanager
def exact_products() -> Iterator[None]:
    """Let torch multiply fp32 numbers as they are, without TF32, inside the block."""
    import torch

    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def describe() -> dict[str, Any]:
    """Return what the GPU is, and its driver where `nvidia-smi` says it."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def roofline() -> dict[str, Any]:
    """Return what this GPU multiplies and copies at best, by large products and a large copy."""
    import torch

    size = 8192
    rates = {}
    for name, dtype in (
        ("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)
    ):  # fmt: skip
        left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = _best_seconds(functools.partial(torch.mm, left, right, out=out))
        rates[name] = 2 * size**3 / seconds
        del left, right, out
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = _best_seconds(functools.partial(target.copy_, source))
    return {"flops_per_second": rates, "bytes_per_second": 2 * source.numel() / seconds}


def _best_seconds(compute: Callable[[], Any]) -> float:
    """Return the least time of several, after some that are not timed."""
    import torch

    found: list[float] = []
    event: Any = torch.cuda.Event  # its annotations are incomplete
    for _ in range(12):
        start, end = (event(enable_timing=True) for _ in range(2))
        start.record()
        compute()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return min(found[4:])


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    versions = done.stdout.split()
    return versions[0] if versions else None


def kernels_of(session: Any) -> dict[str, Any]:
    """Return by network how many shapes our kernels computed, and why torch did the others."""
    report = getattr(session, "report", None)
    if report is None:
        return {}
    found = {}
    for network, choices in report().items():
        kept = Counter(f"{c.op}, because {c.reason}" for c in choices if not c.replaced)
        replaced = Counter(choice.op for choice in choices if choice.replaced)
        found[network] = {"replaced": dict(replaced), "kept": dict(kept)}
    return found


@dataclass(frozen=True)
class DeviceMemory:
    """Watch how much of a GPU's memory this process takes from now on.

    No backend gives memory back between requests, so what is gone after one is its peak; that the
    driver took for the process itself, before, does not count.

    Args:
        free: returns the bytes that are free.
        free_before: what it returned at the start.
        allocated: returns the most bytes that torch had in use at once; None without torch.
    """

    free: Callable[[], int]
    free_before: int
    allocated: Callable[[], int] | None

    @classmethod
    def of(cls, backend: str) -> DeviceMemory | None:
        """Start watching for a backend; None where it uses no GPU."""
        if backend not in GPU_BACKENDS:
            return None
        if backend not in TORCH_BACKENDS:
            return cls(_native_free, _native_free(), None)
        import torch

        if not torch.cuda.is_available():
            return None  # loading says what is lacking
        return cls(_torch_free, _torch_free(), torch.cuda.max_memory_allocated)

    def figures(self) -> dict[str, int]:
        """Return `device_bytes`, by cudaMemGetInfo, and torch's `allocated_device_bytes`."""
        found = {"device_bytes": self.free_before - self.free()}
        if self.allocated is not None:
            found["allocated_device_bytes"] = self.allocated()
        return found


def _native_free() -> int:
    from sdengine import _native

    return _native.cuda_free_bytes()


def _torch_free() -> int:
    import torch

    return torch.cuda.mem_get_info()[0]
