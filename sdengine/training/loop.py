"""The training loop: schedule, moving average, progress, resumable checkpoints.

Every batch is a function of (seed, step, process), so a resumed run continues with exactly the
batches that an uninterrupted one would have seen. Several processes of one thread each train small
networks faster on a CPU than one process of several threads; their gradients are averaged.
"""

from __future__ import annotations

import copy
import json
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image as PILImage
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from sdengine.errors import CheckpointError, ConfigError
from sdengine.storage.whole_file import whole_file
from sdengine.training.scenes import Image

# What a process gets to leave its files whole before it is killed.
_CLEAN_UP_SECONDS = 10


@dataclass
class Draw:
    """Hold the random sources of one step."""

    python: random.Random
    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def at(cls, seed: int, step: int) -> Draw:
        """Make the sources that belong to a step of a run."""
        key = f"{seed}/{step}"
        source = random.Random(key)
        return cls(
            source,
            np.random.default_rng(source.getrandbits(64)),
            torch.Generator().manual_seed(source.getrandbits(63)),
        )


class Task(Protocol):
    """Describe what a loop trains."""

    model: nn.Module

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of one fresh batch at a progress in [0,1), and figures to show."""

    def sheet(self, model: nn.Module) -> Image:
        """Return a picture [H,W,3] that shows what the model can do now."""


@dataclass(frozen=True)
class Schedule:
    """Set the optimiser: AdamW with warm-up, cosine decay, clipping at 1 and a moving average."""

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-4
    ema_decay: float = 0.998
    final_fraction: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        if self.steps < 1:
            raise ConfigError.for_field("steps", self.steps, "an integer of at least 1")
        if not 0 < self.learning_rate < 1:
            raise ConfigError.for_field("learning_rate", self.learning_rate, "a number in (0, 1)")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        decay = self.final_fraction + (1 - self.final_fraction) * cosine
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * decay


Report = Callable[[int, int, dict[str, float]], None]


def train(
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    save_every: int = 500,
    sheet_every: int = 1000,
    report: Report | None = None,
) -> nn.Module:
    """Train a task's model, from its last checkpoint in the folder if there is one.

    Args:
        task: what to train.
        folder: receives ``state.pt`` (resumable), ``log.jsonl`` and ``sheet-STEP.png``.
        schedule: optimiser settings; a resumed run must be given the same.
        save_every, sheet_every: steps between checkpoints and between sample sheets.
        report: called after each step with (step, steps, figures); drives a progress bar.

    Returns:
        The moving average of the model, in evaluation mode.

    Raises:
        CheckpointError: the folder's checkpoint belongs to another model or schedule.
    """
    folder.mkdir(parents=True, exist_ok=True)
    params: list[Tensor] = [p for p in task.model.parameters() if p.requires_grad]
    average = copy.deepcopy(task.model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        params,
        lr=schedule.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    step = _resume(folder / "state.pt", task.model, average, optimiser, schedule)
    trained: list[Tensor] = [
        a
        for a, p in zip(average.parameters(), task.model.parameters(), strict=True)
        if p.requires_grad
    ]
    recent: list[dict[str, float]] = []
    started, first = time.monotonic(), step
    while step < schedule.steps:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        draw = Draw.at(schedule.seed, step * processes + rank)
        loss, figures = task.loss(draw, step / schedule.steps)
        if not math.isfinite(loss.item()):
            raise CheckpointError(
                f"the loss became {loss.item()} at step {step}; lower the learning rate and resume "
                f"from {folder}"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        if processes > 1:
            _average_gradients(params, processes)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay = min(schedule.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(trained, params, 1 - decay)
        step += 1
        if rank > 0:
            continue
        recent.append({"loss": loss.item(), **figures})
        if report is not None:
            report(step, schedule.steps, recent[-1])
        if step % 100 == 0:
            speed = (step - first) / (time.monotonic() - started)
            _log(folder / "log.jsonl", step, recent, schedule.rate(step), speed)
            recent.clear()
        if step % save_every == 0 or step == schedule.steps:
            _save(folder / "state.pt", step, task.model, average, optimiser, schedule)
        if step % sheet_every == 0 or step == schedule.steps:
            with whole_file(folder / f"sheet-{step:06d}.png") as sheet:
                PILImage.fromarray(task.sheet(average)).save(sheet, "PNG")
    return average


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
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    try:
        job()
    finally:
        dist.destroy_process_group()


def _average_gradients(params: list[Tensor], processes: int) -> None:
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= processes
    parts = torch.split(flat, [g.numel() for g in grads])
    for grad, averaged in zip(grads, parts, strict=True):
        grad.copy_(averaged.view_as(grad))


def load_average(folder: Path, model: nn.Module) -> nn.Module:
    """Load the moving average of a finished or running training into a model.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another model.
    """
    state = _read(folder / "state.pt")
    if state is None:
        raise CheckpointError(f"{folder} holds no state.pt; train it first")
    _load_into(model, state["average"], folder)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, dict[str, Tensor]] | None:
    if not path.exists():
        return None
    try:
        # weights_only refuses anything but tensors and plain containers.
        state: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a readable training checkpoint: {error}") from error
    return state


def _load_into(model: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{origin} was trained for another model: {error}") from error


def _resume(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
) -> int:
    state = _read(path)
    if state is None:
        return 0
    if state["schedule"] != vars(schedule):
        raise CheckpointError(
            f"{path} was made with {state['schedule']}, now asked for {vars(schedule)}; "
            "use the same settings, or another output folder"
        )
    _load_into(model, state["model"], path)
    _load_into(average, state["average"], path)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])  # type: ignore[call-overload, no-any-return]


def _save(
    path: Path,
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
) -> None:
    state = {
        "step": step,
        "schedule": dict(vars(schedule)),
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    with whole_file(path) as file:  # an interruption leaves the previous checkpoint whole
        torch.save(state, file)


def _log(path: Path, step: int, recent: list[dict[str, float]], rate: float, speed: float) -> None:
    means = {k: round(float(np.mean([r[k] for r in recent])), 5) for k in recent[0]}
    record = {"step": step, **means, "learning_rate": rate, "steps_per_second": round(speed, 2)}
    with path.open("a") as log:
        log.write(json.dumps(record) + "\n")
