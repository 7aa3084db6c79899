"""Batches: the rows of one file in one process and on Ray, what ends them, and how fast they are.

    python benchmarks/batches.py --rows 500 --speed-rows 100

The demo model's rows are made in one process, then on a local Ray cluster of two actors, of which
one is killed after a third of the rows and the driver after two thirds; the same command makes the
rest. Every file must have the bytes of the first folder's. Speeds are pictures a minute between the
first file and the last one: starting Ray and loading engines is apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from sdengine.benchmarks.measures import Spread
from sdengine.benchmarks.records import RESULTS, stamped, write_record

COLORS = ("red", "green", "blue", "yellow", "cyan", "magenta", "black", "orange")
SHAPES = ("circle", "square", "star", "ring", "heart", "cross")
STEPS = 8
ACTORS = 2
ON_RAY = ("--ray", "local", "--actors", str(ACTORS), "--threads", "1")
ALONE = {"one process, 2 threads": ("--threads", "2"), "one process, 1 thread": ("--threads", "1")}
SIDES = {**ALONE, "Ray, 2 actors of 1 thread": ON_RAY}


def write_rows(path: Path, count: int) -> None:
    """Write rows that are all different."""
    with path.open("w") as file:
        for number in range(count):
            thing = f"{COLORS[number % len(COLORS)]} {SHAPES[number % len(SHAPES)]}"
            row = {"prompt": f"a {thing} on white", "steps": STEPS, "id": number}
            file.write(json.dumps(row) + "\n")


def command(rows: Path, out: Path, options: Sequence[str]) -> list[str]:
    """Return the command that makes the rows."""
    return [
        sys.executable,
        "-m",
        "sdengine",
        "batch",
        str(rows),
        "-o",
        str(out),
        "--json",
        *options,
    ]


def pictures(out: Path) -> list[Path]:
    """Return the pictures that are there."""
    return list(out.glob("*.png"))


def hashes(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by name, hidden ones too."""
    files = (path for path in out.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(rows: Path, out: Path, options: Sequence[str]) -> dict[str, Any]:
    """Make the rows, and return what the command says with the pace of its files."""
    done = subprocess.run(command(rows, out, options), capture_output=True, text=True, check=True)
    times = sorted(path.stat().st_mtime for path in pictures(out))
    pace = 60 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    return {**json.loads(done.stdout), "pictures_a_minute": pace}


def killed(rows: Path, out: Path, count: int) -> dict[str, int]:
    """Begin on Ray; kill an actor after a third of the rows, the driver after two thirds."""
    process = subprocess.Popen(
        command(rows, out, ON_RAY), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    driver = psutil.Process(process.pid)
    _wait(lambda: len(pictures(out)) >= count // 3, process)
    actors = [one for one in driver.children(recursive=True) if _is_actor(one)]
    at_actor = len(pictures(out))
    actors[0].kill()
    _wait(lambda: len(pictures(out)) >= 2 * count // 3, process)
    started = driver.children(recursive=True)
    at_driver = len(pictures(out))
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=60)  # two agents of Ray stay somewhat longer
    return {
        "actors": len(actors),
        "pictures_when_actor_was_killed": at_actor,
        "pictures_when_driver_was_killed": at_driver,
        "pictures_left": len(pictures(out)),
        "processes_left": len(alive),
    }


def _is_actor(process: psutil.Process) -> bool:
    return "RowActor" in " ".join(process.cmdline())


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"the batch ended with {process.returncode} before it was killed")
        time.sleep(0.05)


def measure_kills(folder: Path, count: int) -> dict[str, Any]:
    """Return what became of a batch whose actor and driver were killed."""
    rows = folder / "kills.jsonl"
    write_rows(rows, count)
    whole = run(rows, folder / "whole", ("--threads", "1"))
    figures = killed(rows, folder / "killed", count)
    resumed = run(rows, folder / "killed", ON_RAY)
    expected, found = hashes(folder / "whole"), hashes(folder / "killed")
    if expected != found or len(pictures(folder / "killed")) != count:
        different = [name for name in expected | found if expected.get(name) != found.get(name)]
        raise SystemExit(f"{len(different)} files are not those of one process: {different[:5]}")
    if (whole["made"], resumed["made"] + resumed["kept"]) != (count, count):
        raise SystemExit(f"not every row was made once: {whole}, {resumed}")
    return {
        **figures,
        "rows": count,
        "kept_by_the_second_run": resumed["kept"],
        "made_by_the_second_run": resumed["made"],
        "equal_files": len(found),
    }


def measure_speed(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Return the pace of each side, which take turns."""
    rows = folder / "speed.jsonl"
    write_rows(rows, count)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    loads = []
    for number in range(rounds):
        for index, (name, options) in enumerate(SIDES.items()):
            loads.append(round(os.getloadavg()[0], 2))
            found[name].append(run(rows, folder / f"speed-{number}-{index}", options))
    sides = {
        name: {
            figure: vars(Spread.of([one[figure] for one in runs]))
            for figure in ("pictures_a_minute", "seconds")
        }
        for name, runs in found.items()
    }
    return {"rows": count, "sides": sides, "load_average_before_each": loads}


def main() -> None:
    """Run what is asked for, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500, help="of the batch that is killed; or 0")
    parser.add_argument("--speed-rows", type=int, default=100, help="of each timed batch; or 0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "batches.json")
    given = parser.parse_args()
    figures: dict[str, Any] = {"steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        if given.speed_rows:
            figures["speed"] = measure_speed(Path(folder), given.speed_rows, given.rounds)
        if given.rows:
            figures["kills"] = measure_kills(Path(folder), given.rows)
    record = stamped(figures, "ray")
    write_record(record, given.output)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
