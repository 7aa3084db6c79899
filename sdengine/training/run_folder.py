"""Run folder of a training: checkpoints, each whole or not there, the log, the plot of the loss."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdengine.errors import CheckpointError
from sdengine.storage.whole_file import whole_file

LOG, PLOT = "log.jsonl", "loss.png"
_STATE = re.compile(r"state-(\d{1,12})\.pt")
_SMOOTHED = 50  # stretches of the curve that the plot's mean is of


class RunFolder:
    """Hold the files of one run.

    Args:
        path: of the folder, which is made if it is not there.
        keep: checkpoints that are kept, the last ones.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.keep = keep

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints by step, the latest last."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self.path.iterdir():
                if match := _STATE.fullmatch(path.name):
                    found[int(match[1])] = path
        return dict(sorted(found.items()))

    def read(self) -> dict[str, Any] | None:
        """Return the state that the latest checkpoint holds; None where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        path = next(reversed(self.checkpoints().values()), None)
        if path is None:
            return None
        try:
            # weights_only refuses anything but tensors and plain containers.
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise CheckpointError(
                f"{path} is not a readable training checkpoint: {error}. Delete it to go on from "
                "the one before."
            ) from error
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, and then remove those that are older than the ones to keep."""
        with whole_file(self.path / f"state-{step:06d}.pt") as file:
            torch.save(state, file)
        for path in list(self.checkpoints().values())[: -self.keep]:
            path.unlink(missing_ok=True)

    def cut_log(self, step: int) -> None:
        """Take out of the log what was written behind a checkpoint, which comes again."""
        path = self.path / LOG
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a killed run
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with whole_file(path) as file:
            file.write("".join(kept).encode())

    def log(self, step: int, figures: dict[str, float], rate: float) -> None:
        """Add a step's line."""
        record = {"step": step, **figures, "learning_rate": rate}
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def plot(self, losses: Sequence[float]) -> None:
        """Draw the loss of every step, and its mean over stretches of them, as a picture."""
        from matplotlib.figure import Figure

        values = np.array(losses, np.float64)
        steps = np.arange(1, len(values) + 1)
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, values, linewidth=0.5, alpha=0.4, label="each step")
        parts = np.array_split(np.flatnonzero(np.isfinite(values)), _SMOOTHED)
        stretches = [part for part in parts if len(part)]
        axes.plot(
            [steps[part].mean() for part in stretches],
            [values[part].mean() for part in stretches],
            label="mean",
        )
        axes.set(xlabel="step", ylabel="loss")
        axes.legend()
        with whole_file(self.path / PLOT) as file:
            figure.savefig(file, format="png", dpi=120)
