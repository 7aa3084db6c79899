"""GPU smoke test: the most about the GPU path in minutes, without package index or TensorRT.

    python benchmarks/gpu_smoke.py                   # all parts, into build/gpu-smoke.json
    python benchmarks/gpu_smoke.py --only ptx,sd15   # some
    python benchmarks/gpu_smoke.py --budget 0.5      # half the time for each part

Runs from a checkout, with whatever torch, triton, nvcc, CMake and pybind11 the machine has; nothing
is installed or fetched. Parts run in the order of what they tell a second, each in a process of its
own that ends with its budget, so that a crash or a lost GPU ends one part. The record is written
anew after each and holds all that was found up to then, also by parts that were ended. Without a
GPU every part does what can be done without one and says so. `make gpu-check` does more, where
there are an index and half an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = 1
NO_GPU = "no GPU"
_LOG_LINES = 60
_PACKAGES = ("torch", "triton", "numpy", "pybind11", "cmake", "ninja", "pytest", "tensorrt")


@dataclass(frozen=True)
class Part:
    """One process.

    Args:
        name: short and unique.
        what: it does, for whoever reads along.
        budget_s: seconds after which it is ended.
    """

    name: str
    what: str
    budget_s: int


PARTS = (
    Part(
        "extension", "the extension builds, its CUDA tests pass, under compute-sanitizer too", 150
    ),
    Part("variants", "every variant of every Triton kernel is right", 120),
    Part("ptx", "the driver loads the plugins' PTX", 60),
    Part("kernels", "Triton kernels beside torch and the roofline", 120),
    Part("sd15", "the U-Net of SD 1.5 at 512 pixels: eager, graph, triton, worst kernels", 120),
    Part("sdxl", "the U-Net of SDXL at 1024 pixels, likewise", 150),
)


class Record:
    """All that was found, in one file that is whole at any time.

    Args:
        path: of the JSON file.
        parts: that will run.
    """

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": _said(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
            "machine": machine(),
            "versions": versions(),
            "parts": {part.name: {"status": "not run"} for part in parts},
        }
        self.write()

    def set(self, part: str, outcome: Mapping[str, Any]) -> None:
        """Say what became of a part."""
        self.content["parts"][part] = dict(outcome)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def machine() -> dict[str, Any]:
    """Return what the parts run on, as far as the system's own tools say."""
    query = "name,compute_cap,memory.total,driver_version,clocks.max.sm,power.limit"
    gpus = _said(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"])
    nvcc = (_said(["nvcc", "--version"]) or "").splitlines()
    return {
        "gpus": gpus.splitlines() if gpus else [],
        "nvcc": nvcc[-1] if nvcc else None,
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of what may compute or build, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def lay_out(folder: Path, wheels: Path | None = None) -> Path:
    """Make the package importable as it is installed, by links; return what to import it from.

    Args:
        folder: that is made anew.
        wheels: a folder of wheels that were carried here, which are unpacked beside it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "sdengine"
    package.mkdir(parents=True)
    sources = [*(ROOT / "sdengine").iterdir(), ROOT / "kernels", ROOT / "benchmarks"]
    for source in sources:
        target = package / source.name
        if source.name != "__pycache__" and not target.is_symlink():
            target.symlink_to(source)
    for wheel in sorted(wheels.glob("*.whl")) if wheels else ():
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder)
    return folder


def run_part(
    part: Part, folder: Path, package: Path, budget_s: float, extension: str
) -> dict[str, Any]:
    """Run a part to its end or to that of its budget.

    Args:
        part: which.
        folder: of its files.
        package: what to import from.
        budget_s: in seconds.
        extension: a built module to take instead of building one; empty for none.

    Returns:
        `status` ("ok", "no GPU", "failed", "out of time", or the signal that ended it), `seconds`,
        `found` in the order in which it was found, and the end of the log unless it is ok.
    """
    found, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    found.write_text("")
    command = [sys.executable, "-m", "sdengine.benchmarks.gpu_smoke_parts", part.name, str(found)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(package), str(ROOT / "tests")]),
        "PIP_NO_INDEX": "1",
        "HF_HUB_OFFLINE": "1",
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "SDENGINE_CACHE": str(folder / "cache"),
        "SDENGINE_SMOKE_ROOT": str(ROOT),
        "SDENGINE_SMOKE_EXTENSION": extension,
        "SDENGINE_SMOKE_SECONDS": f"{budget_s:g}",
    }
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file,
            stderr=file, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(budget_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    lines = [json.loads(line) for line in found.read_text("utf-8").splitlines()]
    outcome = {
        "status": _status(code, lines),
        "seconds": round(time.perf_counter() - started, 1),
        "found": lines,
    }
    if outcome["status"] not in ("ok", NO_GPU):
        outcome["log"] = log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return outcome


def _status(code: int | None, lines: Sequence[Mapping[str, Any]]) -> str:
    if code is None:
        return "out of time"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if code:
        return "failed"
    return NO_GPU if any(NO_GPU in line for line in lines) else "ok"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and what it started, which share a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _said(command: Sequence[str]) -> str | None:
    """Return what a tool prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 where all are ok, 2 where only a GPU is missing, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "gpu-smoke.json")
    parser.add_argument("--only", default="", help=", ".join(part.name for part in PARTS))
    parser.add_argument("--budget", type=float, default=1.0, help="times each part's seconds")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use without installing")
    parser.add_argument("--extension", default="", help="a built _native module; none is built")
    options = parser.parse_args(arguments)
    if not (ROOT / "sdengine").is_dir():
        parser.error("it takes the sources beside it: python benchmarks/gpu_smoke.py in a checkout")
    names = [name for name in options.only.split(",") if name]
    unknown = sorted(set(names) - {part.name for part in PARTS})
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is not accepted; expected some of the parts")
    parts = [part for part in PARTS if not names or part.name in names]
    record = Record(options.record.absolute(), parts)
    folder = record.path.parent / record.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    package = lay_out(folder / "package", options.wheels)
    statuses = []
    for part in parts:
        budget_s = part.budget_s * options.budget
        print(f"{part.name} ({budget_s:.0f} s): {part.what}", flush=True)
        outcome = run_part(part, folder, package, budget_s, options.extension)
        record.set(part.name, outcome)
        statuses.append(outcome["status"])
        for line in outcome["found"]:
            print(f"    {json.dumps(line)[:200]}")
        print(f"    {outcome['status']}, {outcome['seconds']} s", flush=True)
    print(f"The record is {record.path}")
    if all(status == "ok" for status in statuses):
        return 0
    return 2 if all(status in ("ok", NO_GPU) for status in statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
