"""Processes that train together: found through accelerate, or started here on one machine.

Whoever starts them says so in the environment, as `accelerate launch` and `torchrun` do. Every
process computes batches of its own; what they find is averaged. Several processes of one thread
each train small networks faster on a CPU than one process of several threads.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor
from torch.multiprocessing.spawn import spawn

# What a process gets to leave its files whole before it is killed.
_CLEAN_UP_SECONDS = 10
_BUCKET_BYTES = 64 << 20  # of gradients that are averaged at once


def this_process(*, cpu: bool = False) -> PartialState:
    """Return which process of how many this one is, and the device that it computes on.

    Args:
        cpu: stay on the CPU though there is a GPU; only the first call decides.
    """
    return PartialState(cpu=cpu)


def average_gradients(params: Sequence[Tensor]) -> None:
    """Replace the gradients of parameters by their mean over all processes."""
    if PartialState().num_processes == 1:
        return
    for grads in _buckets([p.grad for p in params if p.grad is not None]):
        averaged = reduce(torch.cat([g.flatten() for g in grads]), "mean")
        for grad, part in zip(grads, averaged.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def mean_of_all(value: Tensor) -> float:
    """Return the mean of a number over all processes; NaN where it is NaN in one."""
    return float(reduce(value.detach().double().cpu(), "mean") if _is_shared() else value)


def _is_shared() -> bool:
    return bool(PartialState().num_processes > 1)


def _buckets(grads: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for grad in grads:
        bucket.append(grad)
        if sum(g.nbytes for g in bucket) > _BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def run_processes(count: int, folder: Path, job: Callable[[], None]) -> None:
    """Run a picklable job in several processes of one thread each, whose gradients are averaged.

    Args:
        count: number of processes; the first one saves and reports.
        folder: of the run; receives the file through which the processes meet.
        job: calls `train` with the same arguments in each process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "processes"
    meeting.unlink(missing_ok=True)
    arguments = (count, str(meeting.resolve()), job)
    group = spawn(_work, args=arguments, nprocs=count, join=False)  # type: ignore[no-untyped-call]
    try:
        while not group.join():
            pass
    finally:
        _end_processes(group.processes)
        meeting.unlink(missing_ok=True)


def _end_processes(processes: list[BaseProcess]) -> None:
    """End those that still run: when this one is interrupted, or another one has failed."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_CLEAN_UP_SECONDS)
        process.kill()
        process.join()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _work(rank: int, count: int, meeting: str, job: Callable[[], None]) -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # so that no file stays half-written
    torch.set_num_threads(1)
    # In the way in which a launcher tells accelerate.
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in places.items()} | {"OMP_NUM_THREADS": "1"}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    this_process(cpu=True)
    try:
        job()
    finally:
        dist.destroy_process_group()
