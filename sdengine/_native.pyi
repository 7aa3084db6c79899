"""Types of the native extension; the code is in csrc."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class _BuildInfo(TypedDict):
    compiler: str
    instruction_sets: list[str]
    cuda: str | None
    cuda_capabilities: list[int]  # times ten, that the build has kernels for

class _DeviceInfo(TypedDict):
    name: str
    compute_capability: str
    num_multiprocessors: int
    total_bytes: int

def build_info() -> _BuildInfo: ...
def guided_step(
    registers: NDArray[np.float32],
    noise_pred: NDArray[np.float32],
    guidance_scale: float,
    A: NDArray[np.float64],
    b: NDArray[np.float64],
    d: NDArray[np.float64],
    noise: NDArray[np.float32] | None = None,
) -> bool: ...
def scale_duplicate(
    latents: NDArray[np.float32], scale: float, out: NDArray[np.float32]
) -> None: ...
def all_finite(values: NDArray[np.float32]) -> bool: ...
def table_rows(table: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]: ...
def images_to_uint8(images: NDArray[np.float32]) -> NDArray[np.uint8]: ...

class MersenneNormal:
    def __init__(self, seed: int) -> None: ...
    def fill(self, out: NDArray[np.float32]) -> None: ...

class PhiloxNormal:
    def __init__(self, seed: int) -> None: ...
    def fill(self, out: NDArray[np.float32]) -> None: ...

def cuda_available(device: int = 0) -> tuple[bool, str]: ...
def cuda_device_info(device: int = 0) -> _DeviceInfo: ...
def cuda_free_bytes(device: int = 0) -> int: ...
def cuda_synchronize(device: int = 0) -> None: ...

class CudaBuffer:
    def __init__(self, size_bytes: int, device: int = 0) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def upload(self, array: NDArray[Any]) -> None: ...
    def download(self, array: NDArray[Any]) -> None: ...

class Device:
    @property
    def name(self) -> str: ...
    @property
    def num_allocations(self) -> int: ...
    def memory_info(self) -> tuple[int, int]: ...
    def make_current(self) -> None: ...

class CpuDevice(Device):
    def __init__(self, limit_bytes: int = 0) -> None: ...
    def enqueue(self, stream: int, function: Callable[[], object]) -> None: ...
    def ledger(self) -> dict[str, int]: ...

def cuda_device(index: int = 0) -> Device: ...

_Region = tuple[str, int, int, int]
_Key = tuple[str, int, int, int, str]

class MemoryPool:
    def __init__(
        self,
        sets: Mapping[str, Sequence[_Region]],
        cap_bytes: int = 0,
        device: Device | None = None,
    ) -> None: ...
    @property
    def device(self) -> Device: ...
    def address(self, set: str, region: str) -> int: ...

def plan_regions(regions: Sequence[_Region], alignment: int = 256) -> tuple[int, list[int]]: ...

class GraphCache:
    def __init__(self, pool: MemoryPool, max_graphs: int) -> None: ...
    def drop(self, key: _Key) -> None: ...

class Queue:
    def __init__(self, pool: MemoryPool) -> None: ...
    @property
    def stream(self) -> int: ...
    def synchronize(self) -> None: ...
    def upload(self, set: str, region: str, array: NDArray[Any]) -> None: ...
    def clear(self, set: str, region: str) -> None: ...
    def download(self, set: str, region: str, array: NDArray[Any]) -> None: ...
    def scale(
        self,
        set: str,
        source: str,
        first: int,
        count: int,
        factor: float,
        target: str,
        dtype: str,
    ) -> None: ...
    def pixel_batch(
        self, set: str, flag: str, count: int, height: int, width: int
    ) -> PixelBatch: ...

class PixelBatch:
    def add(self, images: str, dtype: str, pixels: str) -> None: ...
    def finish(self) -> NDArray[np.uint8]: ...

class ProgramRunner:
    def __init__(
        self,
        pool: MemoryPool,
        set: str,
        graphs: GraphCache,
        key: _Key,
        shape: Sequence[int],
        copies: int,
        max_steps: int,
        max_registers: int,
        network: Callable[[int], object],
        dtype: str = "float32",
        num_timesteps: int | None = None,
        captured: bool = True,
        queue: Queue | None = None,
    ) -> None: ...
    def warm_up(self) -> None: ...
    def start(
        self,
        t: NDArray[np.float64],
        c_in: NDArray[np.float64],
        A: NDArray[np.float64],
        b: NDArray[np.float64],
        d: NDArray[np.float64],
        guidance_scale: float,
        initial: NDArray[np.float32],
    ) -> None: ...
    def advance(
        self, count: int, noise: Sequence[MersenneNormal | PhiloxNormal] | None = None
    ) -> None: ...
    def read(self) -> NDArray[np.float32]: ...
    def save(self) -> NDArray[np.float32]: ...
    def resume(self, registers: NDArray[np.float32], next: int | None = None) -> None: ...
    def steps_done(self) -> int: ...
    @property
    def why_not_captured(self) -> str: ...
    def cancel(self) -> None: ...

class _StepLayout(TypedDict):
    state_bytes: int
    row_bytes: int
    row_doubles: int
    timestep_double: int
    noise_slot_double: int
    noise_slots: int
    max_registers: int

def step_layout() -> _StepLayout: ...
def trajectory_regions(
    shape: Sequence[int],
    copies: int,
    max_steps: int,
    max_registers: int,
    dtype: str = "float32",
    num_timesteps: int | None = None,
) -> list[_Region]: ...
def instruction_sets() -> list[str]: ...
def use_processors(threads: int) -> None: ...
def peak_rate(kind: str, threads: int, isa: str = "") -> float: ...

# (up [rows,r], down [r,k], scale, strength), or (matrix [rows,k], strength), all fp32
_Term = (
    tuple[NDArray[np.float32], NDArray[np.float32], float, float]
    | tuple[NDArray[np.float32], float]
)

def pack(
    kind: str,
    tile: int,
    sources: list[tuple[NDArray[Any], list[_Term]]],
    gated: bool,
    isa: str = "",
    to: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32], bool]: ...

class SparePages:
    def __init__(self) -> None: ...

def own_pages(size: int) -> NDArray[np.uint8]: ...
def low_rank_product(
    up: NDArray[np.float32], down: NDArray[np.float32], isa: str = ""
) -> NDArray[np.float32]: ...

class Network:
    def __init__(
        self,
        operations: Sequence[Mapping[str, Any]],
        weights: dict[str, NDArray[Any]],
        threads: int,
        isa: str = ...,
        place: str = ...,
    ) -> None: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    def view(self, map: Mapping[str, Any]) -> NDArray[Any]: ...
    def rebind(self, weights: dict[str, NDArray[Any]]) -> None: ...
    def run(self) -> None: ...
    def run_one(self, index: int) -> None: ...
    def run_steps(
        self,
        inputs: Sequence[tuple[NDArray[Any], NDArray[Any]]],
        sample: NDArray[np.float32],
        timestep: NDArray[np.float32],
        noise_pred: NDArray[np.float32],
        registers: NDArray[np.float32],
        t: NDArray[np.float64],
        c_in: NDArray[np.float64],
        A: NDArray[np.float64],
        b: NDArray[np.float64],
        d: NDArray[np.float64],
        guidance_scale: float,
        first: int,
        count: int,
        noise: Sequence[MersenneNormal | PhiloxNormal],
    ) -> tuple[int, bool, int]: ...
    def run_decoder(
        self,
        latents: NDArray[np.float32],
        scale: float,
        sample: NDArray[np.float32],
        images: NDArray[np.float32],
    ) -> tuple[NDArray[np.uint8], bool, int]: ...
    def moments(self, map: Mapping[str, Any]) -> NDArray[np.float64]: ...
    def run_timed(self) -> list[float]: ...
