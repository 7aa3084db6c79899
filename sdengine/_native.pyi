"""Types of the native extension; the code is in csrc."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class _BuildInfo(TypedDict):
    compiler: str
    isa: str
    cuda: str | None

class _DeviceInfo(TypedDict):
    name: str
    compute_capability: str
    num_multiprocessors: int
    total_bytes: int
    free_bytes: int

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
def images_to_uint8(images: NDArray[np.float32]) -> NDArray[np.uint8]: ...

class MersenneNormal:
    def __init__(self, seed: int) -> None: ...
    def fill(self, out: NDArray[np.float32]) -> None: ...

class PhiloxNormal:
    def __init__(self, seed: int) -> None: ...
    def fill(self, out: NDArray[np.float32]) -> None: ...

def cuda_available() -> tuple[bool, str]: ...
def cuda_device_info(device: int = 0) -> _DeviceInfo: ...
def cuda_synchronize(stream: int = 0) -> None: ...

class CudaBuffer:
    def __init__(self, size_bytes: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def upload(self, array: NDArray[Any]) -> None: ...
    def download(self, array: NDArray[Any]) -> None: ...

def cuda_guided_step(
    registers: int,
    noise_pred: int,
    noise: int,
    num_elements: int,
    has_guidance: bool,
    guidance_scale: float,
    table: int,
    step: int,
    num_registers: int,
    not_finite: int,
    stream: int = 0,
) -> None: ...
def cuda_scale_duplicate(
    latents: int,
    num_elements: int,
    scales: int,
    step: int,
    copies: int,
    out: int,
    stream: int = 0,
) -> None: ...
def cuda_images_to_uint8(
    images: int,
    batch: int,
    num_pixels: int,
    out: int,
    not_finite: int,
    stream: int = 0,
) -> None: ...

class MemoryPool:
    def __init__(
        self,
        sets: Mapping[str, Sequence[tuple[str, int, int, int]]],
        cap_bytes: int = 0,
        limit_bytes: int = 0,
    ) -> None: ...
    def address(self, set: str, region: str) -> int: ...
    def report(self) -> dict[str, int]: ...

class GraphCache:
    def __init__(self, pool: MemoryPool, max_graphs: int) -> None: ...
    def clear(self) -> None: ...
    def report(self) -> dict[str, int]: ...

class Trajectory:
    def __init__(
        self,
        pool: MemoryPool,
        set: str,
        graphs: GraphCache,
        key: tuple[str, int, int, int, str],
        shape: Sequence[int],
        copies: int,
        max_steps: int,
        max_registers: int,
        network: Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], object],
    ) -> None: ...
    def warm_up(self) -> None: ...
    def run(
        self,
        t: NDArray[np.float64],
        c_in: NDArray[np.float64],
        A: NDArray[np.float64],
        b: NDArray[np.float64],
        d: NDArray[np.float64],
        guidance_scale: float,
        initial: NDArray[np.float32],
        noise: Callable[[NDArray[np.float32]], object] | None = None,
    ) -> NDArray[np.float32]: ...
    def cancel(self) -> None: ...
    @property
    def steps_done(self) -> int: ...

def trajectory_regions(
    shape: Sequence[int], copies: int, max_steps: int, max_registers: int
) -> list[tuple[str, int, int, int]]: ...
def instruction_sets() -> list[str]: ...
def pack_panels(
    kind: str, matrix: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]: ...
def pack_winograd(
    kind: str, tile: int, kernels: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...

class Network:
    def __init__(
        self,
        operations: list[dict[str, Any]],
        weights: dict[str, NDArray[Any]],
        threads: int,
        isa: str = ...,
    ) -> None: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    def view(self, map: Mapping[str, Any]) -> NDArray[Any]: ...
    def run(self) -> None: ...
    def run_one(self, index: int) -> None: ...
    def run_timed(self) -> list[float]: ...
