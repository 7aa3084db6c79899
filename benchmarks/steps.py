"""Steps of a long check: each is one or several commands; one that fails does not stop the rest."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sdengine.benchmarks.markdown import table
from sdengine.errors import ConfigError

Show = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """Name what is run.

    Args:
        name: short, unique, and a file name.
        what: it does, for whoever reads along.
        commands: run one after the other, each whatever became of those before.
        environment: variables that they get besides.
    """

    name: str
    what: str
    commands: tuple[tuple[str, ...], ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a step; `failed` holds a line for each command that failed."""

    step: str
    ok: bool
    seconds: float
    failed: tuple[str, ...]


def choose(steps: Sequence[Step], only: str, skip: str) -> list[Step]:
    """Return the steps that are asked for, in their order.

    Args:
        steps: all of them.
        only, skip: names separated by commas; an empty `only` is all.

    Raises:
        ConfigError: a name is unknown, or none is left.
    """
    names = [step.name for step in steps]
    wanted, unwanted = ([n.strip() for n in text.split(",") if n.strip()] for text in (only, skip))
    for field_name, given in (("--only", wanted), ("--skip", unwanted)):
        for name in given:
            if name not in names:
                raise ConfigError.for_field(field_name, name, ", ".join(names))
    chosen = [s for s in steps if (not wanted or s.name in wanted) and s.name not in unwanted]
    if not chosen:
        raise ConfigError(f"no step is left of {', '.join(names)}.")
    return chosen


def listing(steps: Sequence[Step]) -> str:
    """Return the steps and their commands as a shell would take them."""
    lines = []
    for step in steps:
        lines.append(f"{step.name}: {step.what}")
        variables = [f"{name}={value}" for name, value in step.environment.items()]
        lines += [f"    {shlex.join([*variables, *command])}" for command in step.commands]
    return "\n".join(lines)


def run_steps(steps: Sequence[Step], folder: Path, show: Show = print) -> list[Outcome]:
    """Run all steps, whatever fails.

    Commands run in the folder, so that Python finds the installed package and not a checkout. What
    they print goes to `<name>.log` there, and an Outcome each as a JSON line to `steps.jsonl` as
    soon as it is known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "steps.jsonl").write_text("")
    outcomes = []
    for index, step in enumerate(steps, start=1):
        show(f"[{index}/{len(steps)}] {step.name}: {step.what}")
        outcome = _run(step, folder)
        outcomes.append(outcome)
        with (folder / "steps.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        show(f"    {'ok' if outcome.ok else 'FAILED'}, {outcome.seconds:.1f} s")
        for line in outcome.failed:
            show(f"    {line}")
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    rows = []
    for outcome in outcomes:
        shown = "ok" if outcome.ok else "failed: " + "; ".join(outcome.failed).replace("|", "\\|")
        rows.append([outcome.step, shown, f"{outcome.seconds:.1f}"])
    return table(["step", "outcome", "s"], rows, texts=2)


def _run(step: Step, folder: Path) -> Outcome:
    log = folder / f"{step.name}.log"
    started = time.perf_counter()
    failed = []
    with log.open("w", encoding="utf-8") as file:
        for command in step.commands:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            error = _run_command(command, step.environment, folder, file.fileno())
            if error:
                failed.append(f"{shlex.join(command)}: {error}, see {log}")
    seconds = round(time.perf_counter() - started, 1)
    return Outcome(step.name, not failed, seconds, tuple(failed))


def _run_command(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, output: int
) -> str:
    """Return what went wrong, or nothing."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            check=False,
        )
    except OSError as error:
        return f"did not start: {error.strerror}"
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    return f"exit status {done.returncode}" if done.returncode else ""
