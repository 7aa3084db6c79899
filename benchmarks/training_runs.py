"""Runs of training commands as processes: killed and resumed, at full size, two that share work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sdengine.benchmarks import taught_scenes as taught
from sdengine.benchmarks.modules import module_command
from sdengine.benchmarks.training_steps import SCRIPTS, write_inputs
from sdengine.checkpoints.synthetic import make_synthetic
from sdengine.training.scenes import TAUGHT_COLOR

Figures = dict[str, Any]
OUTPUTS: Mapping[str, str] = MappingProxyType({
    "embedding": "taught.safetensors", "lora": "taught.safetensors", "hypernetwork": "taught.pt",
})  # fmt: skip
_SEED = 40_000
_MOST_SECONDS = 3600.0  # of trainings that are killed again and again


def resume(kind: str, kills: int, moments: Sequence[float]) -> Figures:
    """Kill a command at random moments and let it go on; compare with one that was left alone."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = taught.write_pictures(
            folder / "data", 12, taught.draw_taught(TAUGHT_COLOR, TAUGHT_COLOR)
        )
        outputs = [folder / name / OUTPUTS.get(kind, "taught") for name in ("whole", "cut")]
        words = []
        for output in outputs:
            output.parent.mkdir()
            more = "--batch", 2, "--save-every", 3
            words.append(module_command("sdengine", *_words(kind, data, output, 60, *more)))
        subprocess.run(words[0], check=True, env=_one_thread())
        rng, done, started = random.Random(_SEED), 0, time.monotonic()
        steps = []
        while not outputs[1].exists() and time.monotonic() - started < _MOST_SECONDS:
            process = subprocess.Popen([*words[1], "--resume"], env=_one_thread())
            if done < kills:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=rng.uniform(*moments))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    done += 1
            process.wait()
            steps.append(len(_losses(outputs[1])))
        logs = [_losses(output) for output in outputs]
        return {"kills": done, "steps": len(logs[0]), "steps_logged_at_each_end": steps,
                "equal_losses": logs[0] == logs[1],
                "equal_files": contents(outputs[0]) == contents(outputs[1])}  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file or of all files of a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def steps(
    kind: str, arch: str, count: int, examples: Path | None, place: Path | None = None
) -> Figures:
    """Take a few steps of a kind at full size, ours and diffusers', each side in a process.

    A step's seconds are of one core, by the process's own clock, since others may share it; they
    are those of the steps behind the first.

    Args:
        kind: what is trained.
        arch: of the checkpoint, made with synthetic weights.
        count: of steps.
        examples: the folder of that name in a checkout of diffusers; not read where none of its
            scripts trains this kind.
        place: keeps the checkpoint for other calls, or has it.
    """
    if count < 2:
        raise SystemExit(f"--steps: {count} is not accepted; expected at least 2, to be measured")
    script: Path | None = None
    if kind in SCRIPTS:
        script = None if examples is None else examples / SCRIPTS[kind][0]
        if script is None or not script.is_file():
            raise SystemExit(
                f"--examples: {examples} has no {SCRIPTS[kind][0]}: give the folder 'examples' of "
                "a checkout of diffusers"
            )
        # Whether all is there that it imports, before others are measured for minutes.
        subprocess.run(
            [sys.executable, str(script), "--help"],
            check=True, env=_one_thread(), stdout=subprocess.DEVNULL,
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = (place or folder) / "model"
        if not model.exists():
            make_synthetic(arch, model, dtype=torch.float32)  # scripts train some as they find them
        data = taught.write_pictures(folder / "data", 1, taught.draw_subject)
        output = folder / OUTPUTS.get(kind, "taught")
        found = {"ours": _measured("ours", kind, model, data, output, count)}
        print(found, flush=True)
        if script is not None:
            write_inputs(kind, model, data, folder / "inputs.pt")
            checked = _measured("check", kind, model, folder / "inputs.pt")
            scripted = _measured("script", kind, model, data, folder / "script", count, examples)
            digest = hashlib.sha256(script.read_bytes()).hexdigest()
            found["script"] = {**scripted, "sha256": digest}
            found["check"] = checked
    return found


def processes(count: int) -> Figures:
    """Train with two processes, and with one that sees both their batches; compare the losses."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = taught.write_pictures(
            folder / "data", 12, taught.draw_taught(TAUGHT_COLOR, TAUGHT_COLOR)
        )
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        curves = []
        for name, start, batches in (("one", [sys.executable], 2), ("two", launcher, 1)):
            output = folder / f"{name}.safetensors"
            words = _words("lora", data, output, count, "--batch", 4,
                           "--accumulation", batches, "--device", "cpu")  # fmt: skip
            command = [*start, "-m", "sdengine", *words]
            subprocess.run(command, check=True, cwd=folder, env=_one_thread())
            curves.append([line["loss"] for line in _losses(output, whole=True)])
    one, two = map(np.array, curves)
    return {"steps": len(one), "largest_relative_difference": float(np.abs(two / one - 1).max())}


def _words(kind: str, data: Path, output: Path, steps: int, *more: Any) -> list[str]:
    words = ["train", kind, "demo", "--data", data, "-o", output, "--steps", steps, *more]
    return [str(word) for word in words]


def _losses(output: Path, *, whole: bool = False) -> list[Any]:
    """Return the losses, or the whole lines, of the log of the run that made an output."""
    log = output.with_name(f"{output.name}.training") / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return lines if whole else [line["loss"] for line in lines]


def _one_thread() -> dict[str, str]:
    # Scripts take a GPU where there is one.
    alone = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **alone}


def _measured(*words: Any) -> Figures:
    """Take a side's steps in a process; return its peak memory and what it says."""
    command = module_command("sdengine.benchmarks.training_steps", *words)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_one_thread())
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss * 1024
    return {"peak_bytes": peak, **json.loads(printed.strip().splitlines()[-1])}
