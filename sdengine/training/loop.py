"""The training loop: batches, moving average, progress, checkpoints from which a run goes on.

Every batch is a function of (seed, number of the batch), and torch's own random numbers are seeded
by it: so there are neither random states nor places in a data set to be saved, and a run that goes
on from a checkpoint sees exactly the batches that an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from sdengine.errors import CheckpointError, TrainingError
from sdengine.storage.whole_file import whole_file
from sdengine.training.processes import average_gradients, mean_of_all, this_process
from sdengine.training.run_folder import RunFolder
from sdengine.training.scenes import Image
from sdengine.training.schedule import Schedule

MAX_SKIPPED = 10  # steps in a row without a finite loss, after which a training ends


@dataclass
class Draw:
    """Hold the random sources of one batch.

    Args:
        number: of the batch, counted through steps and processes.
    """

    python: random.Random
    numpy: np.random.Generator
    torch: torch.Generator
    number: int = 0

    @classmethod
    def at(cls, seed: int, number: int) -> Draw:
        """Make the sources that belong to a batch of a run."""
        key = f"{seed}/{number}"
        source = random.Random(key)
        return cls(
            source,
            np.random.default_rng(source.getrandbits(64)),
            torch.Generator().manual_seed(source.getrandbits(63)),
            number,
        )


class Task(Protocol):
    """Describe what a loop trains."""

    model: nn.Module

    def loss(self, draw: Draw, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of one fresh batch at a progress in [0,1), and figures to show."""

    def sheet(self, model: nn.Module) -> Image | None:
        """Return a picture [H,W,3] that shows what the model can do now, or None for none."""


Report = Callable[[int, int, dict[str, float]], None]


def train(
    task: Task,
    folder: Path,
    schedule: Schedule,
    *,
    save_every: int = 500,
    sheet_every: int = 1000,
    keep: int = 2,
    identity: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> nn.Module:
    """Train a task's model, from its last checkpoint in the folder if there is one.

    A signal that ends the process ends the step first and saves a checkpoint; a second one does
    not wait. Steps whose loss or gradient is not finite change nothing and are counted.

    Args:
        task: what to train.
        folder: receives ``state-STEP.pt``, from which a run goes on, ``log.jsonl`` with a line for
            each step, ``loss.png`` and ``sheet-STEP.png``.
        schedule: settings; a run that goes on must be given the same.
        save_every, sheet_every: steps between checkpoints, and between sample sheets.
        keep: checkpoints that are kept.
        identity: what else must be the same for a run to go on, as JSON has it.
        report: called after each step with (step, steps, figures); drives a progress bar.

    Returns:
        The model with the moving average of its weights, in evaluation mode.

    Raises:
        CheckpointError: the folder's checkpoint belongs to another model or schedule.
        TrainingError: the loss was not finite for MAX_SKIPPED steps in a row.
    """
    run = _Run(task, RunFolder(folder, keep), schedule, dict(identity or {}))
    with _ending_signals() as ending:
        while run.step < schedule.steps:
            figures = run.advance()
            if not run.is_first:
                continue
            run.folder.log(run.step, figures, schedule.rate(run.step - 1))
            if report is not None:
                report(run.step, schedule.steps, figures)
            is_last = run.step == schedule.steps
            if run.step % save_every == 0 or is_last or ending.number:
                run.save()
            if run.step % sheet_every == 0 or is_last:
                run.show()
            if ending.number:
                ending.pass_on()
    run.take_average()
    return task.model.eval()


class _Run:
    """Hold what changes while a model is trained."""

    def __init__(
        self, task: Task, folder: RunFolder, schedule: Schedule, identity: dict[str, Any]
    ) -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        self.task, self.folder, self.schedule, self.identity = task, folder, schedule, identity
        process = this_process()
        self.rank = int(process.process_index)
        self.processes = int(process.num_processes)
        named = [(n, p) for n, p in task.model.named_parameters() if p.requires_grad]
        self.params: list[Tensor] = [p for _, p in named]
        self.names = [n for n, _ in named]
        self.average = [p.detach().clone() for p in self.params] if schedule.ema_decay else []
        self.optimiser = schedule.make_optimiser(self.params)
        device = self.params[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=schedule.scale_loss)
        self.step = 0
        self.losses: list[float] = []
        self.skipped = 0  # in a row
        self._resume()
        task.model.train()

    @property
    def is_first(self) -> bool:
        """Say whether this process is the one that writes and reports."""
        return self.rank == 0

    def advance(self) -> dict[str, float]:
        """Take one step; return its loss and figures."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        loss, figures = self._accumulate()
        taken = math.isfinite(loss) and self._take_step()
        self.optimiser.zero_grad()
        self.step += 1
        self.losses.append(loss)
        if taken:
            self.skipped = 0
            return {"loss": loss, **figures}
        self.skipped += 1
        if self.skipped >= MAX_SKIPPED:
            latest = next(reversed(self.folder.checkpoints().values()), None)
            kept = f"the last good checkpoint is {latest}" if latest else "no checkpoint was saved"
            raise TrainingError(
                f"the loss or its gradient was not finite for {self.skipped} steps in a row, last "
                f"{loss} at step {self.step}; {kept}. Lower the learning rate, or train in "
                "another precision."
            )
        return {"loss": loss, **figures, "skipped": self.skipped}

    def _accumulate(self) -> tuple[float, dict[str, float]]:
        """Add up the gradients of a step's batches; return the mean loss and the last figures."""
        count = self.schedule.accumulation
        total = torch.zeros((), dtype=torch.float64)
        figures: dict[str, float] = {}
        for i in range(count):
            number = (self.step * count + i) * self.processes + self.rank
            draw = Draw.at(self.schedule.seed, number)
            torch.manual_seed(draw.python.getrandbits(63))  # of dropout
            loss, figures = self.task.loss(draw, self.step / self.schedule.steps)
            total += loss.detach().double().cpu() / count
            if not torch.isfinite(total):
                break
            self.scaler.scale(loss / count).backward()  # type: ignore[no-untyped-call]
        return mean_of_all(total), figures

    def _take_step(self) -> bool:
        """Apply the gradients; say whether they were finite."""
        average_gradients(self.params)
        self.scaler.unscale_(self.optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.schedule.max_grad_norm)
        is_finite = bool(torch.isfinite(norm))
        if not (is_finite or self.schedule.scale_loss):
            return False
        self.scaler.step(self.optimiser)  # which a scaler leaves out where they are not
        self.scaler.update()
        if is_finite and self.average:
            decay = self.schedule.average_decay(self.step)
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1 - decay)
        return True

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Give the model with the moving average of its weights, in evaluation mode."""
        before = [p.detach().clone() for p in self.params] if self.average else []
        self.take_average()
        self.task.model.eval()
        try:
            yield self.task.model
        finally:
            self.task.model.train()
            with torch.no_grad():
                for param, value in zip(self.params, before, strict=bool(before)):
                    param.copy_(value)

    def take_average(self) -> None:
        """Put the moving average in the place of the weights."""
        with torch.no_grad():
            for param, value in zip(self.params, self.average, strict=bool(self.average)):
                param.copy_(value)

    def show(self) -> None:
        """Write the plot of the loss, and the sample sheet where the task draws one."""
        self.folder.plot(self.losses)
        with self.averaged() as model:
            picture = self.task.sheet(model)
        if picture is not None:
            with whole_file(self.folder.path / f"sheet-{self.step:06d}.png") as file:
                PILImage.fromarray(picture).save(file, "PNG")

    def save(self) -> None:
        """Write a checkpoint; an interruption leaves the ones before whole."""
        model = self.task.model.state_dict()
        averages = dict(zip(self.names, self.average, strict=bool(self.average)))
        state = {
            "step": self.step,
            "schedule": dict(vars(self.schedule)),
            "identity": self.identity,
            "model": model,
            "average": {**model, **averages} if averages else {},
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "skipped": self.skipped,
        }
        self.folder.save(self.step, state)

    def _resume(self) -> None:
        state = self.folder.read()
        if self.is_first:
            self.folder.cut_log(0 if state is None else state["step"])
        if state is None:
            return
        asked: dict[str, Any] = {**vars(self.schedule), **self.identity}
        made_with = {**state["schedule"], **state["identity"]}
        other = sorted(k for k in asked.keys() | made_with.keys()
                       if asked.get(k) != made_with.get(k))  # fmt: skip
        if other:
            shown = "; ".join(
                f"{k} was {str(made_with.get(k))[:60]}, is now {str(asked.get(k))[:60]}"
                for k in other[:5]
            )
            raise CheckpointError(
                f"{self.folder.path} holds a run with other settings: {shown}. Use the same "
                "settings, or another folder."
            )
        load_weights(self.task.model, state["model"], self.folder.path)
        with torch.no_grad():
            for name, value in zip(self.names, self.average, strict=bool(self.average)):
                value.copy_(state["average"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.losses = state["losses"].tolist()
        self.skipped = state["skipped"]


def load_average(folder: Path, model: nn.Module) -> nn.Module:
    """Load the moving average of a finished or running training into a model.

    Raises:
        CheckpointError: there is no checkpoint, or it belongs to another model.
    """
    state = RunFolder(folder).read()
    if state is None:
        raise CheckpointError(f"{folder} holds no checkpoint; train it first")
    load_weights(model, state["average"] or state["model"], folder)
    return model.eval().requires_grad_(False)


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Load a checkpoint's weights into a model.

    Raises:
        CheckpointError: they are another model's.
    """
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{origin} was trained for another model: {error}") from error


class _Ending:
    """The signal that asked for the end; `number` is 0 as long as none has come."""

    number = 0

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; leave a second one to who handled signals before."""
        self.number = number
        self.restore()

    def restore(self) -> None:
        """Handle signals as they were handled before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def pass_on(self) -> None:
        """Let the signal do what it would have done at once."""
        signal.raise_signal(self.number)
        raise KeyboardInterrupt


@contextmanager
def _ending_signals() -> Iterator[_Ending]:
    """Hold back the signals that end a process until a step is done and saved.

    Signals that are ignored stay so; outside of the main thread none can be handled.
    """
    ending = _Ending()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                ending.before[number] = signal.signal(number, ending.receive)
    try:
        yield ending
    finally:
        ending.restore()
