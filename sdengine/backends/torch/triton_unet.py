"""U-Net of the triton backend, with the sampler's steps beside it on the GPU.

The native runtime scales latents, guides and steps; between, it replays the captured graph of the
network on its own stream. What a request's steps have in common is computed once, before the first.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdengine import _native
from sdengine.backends.base import Array
from sdengine.backends.device_protocols import TrajectoryKind
from sdengine.backends.device_run import GpuRun, why_too_long
from sdengine.backends.shared_arena import (
    MAX_EVALUATIONS,
    MAX_REGISTERS,
    NOISE_PRED,
    NUMPY,
    SAMPLE,
    STEP_TENSORS,
    TABLE,
    Region,
    SharedArena,
    StagedInputs,
    region_of,
)
from sdengine.backends.torch.eager import TorchModule, current_gpu, torch_errors
from sdengine.backends.torch.graphs import GraphedCall, GraphPool
from sdengine.backends.torch.triton_model import SplitUNet
from sdengine.bundle.controls import is_feature, is_residual
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import DeviceError
from sdengine.models.network_contract import KEPT_IN_FP32
from sdengine.models.positional import PositionalUNet
from sdengine.samplers import SamplerProgram

_SET = "steps"
# Programs of up to so many evaluations share a graph; twice as many share the next, and so on.
LEAST_EVALUATIONS = 64


@dataclass(frozen=True)
class Runtime:
    """What a session computes with.

    Args:
        device: as torch names it.
        cuda: torch's interface to streams and graphs.
        pool: of the session's graphs.
        native: opens the same device in the native runtime.
        why_not: the native runtime cannot; empty where it can.
    """

    device: str
    cuda: Any
    pool: GraphPool
    native: Callable[[], _native.Device]
    why_not: Callable[[], str]


@dataclass(frozen=True)
class _Graphs:
    common: GraphedCall
    step: GraphedCall

    def close(self) -> None:
        self.common.close()
        self.step.close()


class TritonUNet(TorchModule):
    """The U-Net; see `sdengine.backends.device_protocols.RunsTrajectories` for what it adds.

    Args:
        unet: whose modules `prepare` changed.
        compute: runs all of it, for steps that the host runs.
        inputs, outputs: with numbers for shapes.
        dtype: what it computes in.
        threads: CPU threads, or None for torch's choice.
        runtime: of the session.
    """

    def __init__(
        self,
        unet: PositionalUNet,
        compute: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        dtype: torch.dtype,
        threads: int | None,
        runtime: Runtime,
    ) -> None:
        super().__init__("unet", compute, inputs, outputs, dtype, threads, runtime.device)
        self._runtime = runtime
        self._split = SplitUNet(unet.module, unet.added)
        # Controls take the host's path: a step beside the network never has any.
        read = [s for s in inputs if not (is_residual(s.name) or is_feature(s.name))]
        self._read = tuple(s for s in read if s.name not in STEP_TENSORS)
        self._shape = next(tuple(map(int, s.shape)) for s in inputs if s.name == SAMPLE)
        self._type = str(dtype).removeprefix("torch.")
        self._arena: SharedArena | None = None
        self._stream: Any = None
        self._staged: StagedInputs | None = None
        self._graphs: dict[int, _Graphs] = {}

    def refuses(self, kind: TrajectoryKind) -> str:
        """Say why a trajectory cannot run beside the network; nothing where it can."""
        rows, channels, *_ = self._shape
        if kind.batch * kind.copies != rows:
            return f"it has {kind.batch * kind.copies} rows, the network {rows}"
        if kind.channels != channels:
            return f"the network reads {channels} channels, {kind.channels} are latents"
        return why_too_long(kind) or self._runtime.why_not()

    def is_ready(self, kind: TrajectoryKind) -> bool:
        """Say whether `prepare` has nothing left to do."""
        return _capacity(kind) in self._graphs

    def prepare(self, kind: TrajectoryKind) -> None:
        """Capture what is replayed once a request, and what at each step."""
        if self._compute is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        arena = self._opened_arena()
        arena.take(self)
        # Whatever lies there is computed with, and NaN is slow on some processors.
        for region in arena.sets[_SET]:
            arena.queue.clear(_SET, region)
        arena.queue.synchronize()
        with self._on_stream(), torch.inference_mode():
            self._graphs[_capacity(kind)] = self._capture(arena, _capacity(kind))
        arena.queue.synchronize()

    def begin(
        self,
        kind: TrajectoryKind,
        program: SamplerProgram,
        guidance_scale: float,
        registers: Array,
        first: int = 0,
    ) -> GpuRun:
        """Bring a program and its registers before evaluation `first` to the GPU."""
        arena, graphs = self._opened_arena(), self._graphs[_capacity(kind)]
        height, width = self._shape[2:]
        steps = _native.ProgramRunner(
            arena.pool,
            _SET,
            arena.graphs,
            (self.name, kind.batch, height, width, ""),
            (kind.batch, *self._shape[1:]),
            kind.copies,
            MAX_EVALUATIONS,
            MAX_REGISTERS,
            functools.partial(self._queue_step, graphs),
            dtype=self._type,
            num_timesteps=self._shape[0],
            captured=False,  # torch's own graph is replayed between two kernels
            queue=arena.queue,
        )
        send = functools.partial(self._send, graphs)
        run = GpuRun(arena, _SET, steps, send, len(program.t) - first)
        run.start(program, guidance_scale, registers, first)
        return run

    def leave(self) -> None:
        """Keep nothing: only what captures saw was there."""

    def close(self) -> None:
        """Free the network's memory and its graphs; a second call does nothing."""
        if self._arena is not None:
            self._arena.queue.synchronize()
        for graphs in self._graphs.values():
            graphs.close()
        self._graphs.clear()
        self._arena = self._staged = self._stream = None
        super().close()

    def _send(self, graphs: _Graphs, inputs: Mapping[str, Array], without: Container[str]) -> None:
        """Bring the text and what else a request says, and compute what follows from it."""
        assert self._staged is not None
        self._staged.send(inputs, without)
        with self._on_stream():
            graphs.common.replay()

    def _queue_step(self, graphs: _Graphs, stream: int) -> None:
        assert self._arena is not None and stream == self._arena.queue.stream
        with self._on_stream():
            graphs.step.replay()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        device = self._runtime.device
        with torch_errors(self.name), current_gpu(device), self._runtime.cuda.stream(self._stream):
            yield

    def _opened_arena(self) -> SharedArena:
        """Return the memory that steps and network share, taken at the first trajectory."""
        if self._arena is None:
            regions = self._regions()
            arena = SharedArena(self._runtime.native(), {_SET: regions}, cap_bytes=0)
            host = {
                s.name: np.zeros(tuple(map(int, s.shape)), NUMPY[self._stored(s)])
                for s in self._read
            }
            self._staged = StagedInputs(arena, _SET, self.name, self._read, host)
            self._stream = self._runtime.cuda.ExternalStream(
                arena.queue.stream, device=self._runtime.device
            )
            self._arena = arena
        return self._arena

    def _regions(self) -> list[Region]:
        # As many images as rows, so that with and without guidance all fits.
        regions = _native.trajectory_regions(
            self._shape, 1, MAX_EVALUATIONS, MAX_REGISTERS, self._type
        )
        for spec in self._read:
            itemsize = np.dtype(NUMPY[self._stored(spec)]).itemsize
            size_bytes = math.prod(map(int, spec.shape)) * itemsize
            regions.append((region_of(self.name, spec.name), size_bytes, 1, 1))
        return regions

    def _stored(self, spec: TensorSpec) -> str:
        """Return the type that an input lies there in."""
        return "float32" if spec.name in KEPT_IN_FP32 else self._type

    def _capture(self, arena: SharedArena, capacity: int) -> _Graphs:
        def tensor(region: str, shape: tuple[int, ...], dtype: str, begin: int = 0) -> Tensor:
            return tensor_at(arena.pool, _SET, region, begin, shape, dtype, self._runtime.device)

        layout = _native.step_layout()
        rows = (capacity, layout["row_doubles"])
        table = tensor(TABLE, rows, "float64", layout["state_bytes"])
        given = [
            tensor(region_of(self.name, s.name), tuple(map(int, s.shape)), self._stored(s))
            for s in self._read
        ]
        cuda, pool = self._runtime.cuda, self._runtime.pool
        timesteps = table[:, layout["timestep_double"]]
        common = GraphedCall(self._split.common, (timesteps, *given), cuda, pool)
        sample = tensor(SAMPLE, self._shape, self._type)
        row = tensor(TABLE, (1,), "int32", layout["row_bytes"])
        step = GraphedCall(
            self._split.step,
            (sample, row, *common.outputs),
            cuda,
            pool,
            (tensor(NOISE_PRED, self._shape, self._type),),
        )
        return _Graphs(common, step)


def _capacity(kind: TrajectoryKind) -> int:
    """Return how many evaluations' timesteps a graph reads."""
    return max(LEAST_EVALUATIONS, 1 << (kind.evaluations - 1).bit_length())


class _DeviceArray:
    """Memory of a GPU as torch takes it from others; it lives as long as torch's tensor."""

    def __init__(self, pool: _native.MemoryPool, address: int, size_bytes: int) -> None:
        self._pool = pool
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,), "typestr": "|u1", "data": (address, False), "version": 3
        }  # fmt: skip


def tensor_at(
    pool: _native.MemoryPool,
    set_name: str,
    region: str,
    begin: int,
    shape: tuple[int, ...],
    dtype: str,
    device: str,
) -> Tensor:
    """Return a tensor over a region's memory.

    Args:
        pool, set_name, region: where it lies.
        begin: bytes from the region's begin.
        shape, dtype: of the tensor.
        device: of the pool, as torch names it.
    """
    kind: torch.dtype = getattr(torch, dtype)
    address = pool.address(set_name, region) + begin
    size_bytes = math.prod(shape) * kind.itemsize
    if device == "cpu":
        content: Any = (ctypes.c_ubyte * size_bytes).from_address(address)
        content.pool = pool
        flat = torch.frombuffer(content, dtype=torch.uint8)
    else:
        flat = torch.as_tensor(_DeviceArray(pool, address, size_bytes), device=device)
    return flat.view(kind).view(shape)
