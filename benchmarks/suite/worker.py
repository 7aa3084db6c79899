"""One side in a process of its own, which does what it is told by lines of JSON.

    python -m sdengine.benchmarks.suite.worker '{"side": "native", "precision": "bf16", ...}'

So neither side's memory holds the other's, and one that is killed is a row of the table. Commands
come by standard input; answers go to the descriptor that the arguments name, because systems print.
Arrays go by way of files.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from sdengine.benchmarks.measures import peak_bytes
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.sides.side import Place, Side

Answer = dict[str, Any]


class _Worker:
    """A side, and what it can be told to do."""

    def __init__(self, side: Side, setting: Setting) -> None:
        self.side = side
        self.setting = setting
        self.device: Any = None

    def start(self) -> Answer:
        """Load; the seconds of each part."""
        if self.setting.device == "cuda":
            from sdengine.benchmarks.gpu import DeviceMemory

            self.device = DeviceMemory.of(getattr(self.side, "backend", "torch-cuda"))
        return {"seconds": {name: round(s, 4) for name, s in self.side.start().items()}}

    def serve(self, steps: int, file: str | None, exact: bool = False) -> Answer:
        """Serve one request; its times, and its pictures in a file."""
        started = time.perf_counter()
        with self._products(exact):
            served = self.side.serve(steps)
        seconds = time.perf_counter() - started
        if file is not None:
            arrays: dict[str, Any] = {"images": served.images}
            if served.latents is not None:
                arrays["latents"] = served.latents
            np.savez(file, **arrays)
        return {
            "seconds": round(seconds, 4),
            "stages_ms": served.stages_ms,
            "steps_ms": served.steps_ms,
        }

    def networks(self, states: str | None, file: str, exact: bool = False) -> Answer:
        """Run each network once; its outputs in a file."""
        given = None if states is None else np.load(states)["text_encoder"]
        with self._products(exact):
            found: dict[str, Any] = self.side.networks(given)
        np.savez(file, **found)
        return {"names": sorted(found)}

    def memory(self) -> Answer:
        """Return the most memory up to now."""
        on_device = self.device.figures() if self.device is not None else {}
        return {"peak_bytes": peak_bytes(), **on_device}

    def kernels(self) -> Answer:
        """Return which operations our kernels computed, where the side says it."""
        kernels = getattr(self.side, "kernels", dict)
        return {"kernels": kernels()}

    def gpu(self) -> Answer:
        """Return what the GPU is and what it moves and multiplies at best."""
        from sdengine.benchmarks import gpu

        return {"gpu": gpu.describe(), "roofline": gpu.roofline()}

    def _products(self, exact: bool) -> AbstractContextManager[None]:
        """Let a reference on a GPU multiply fp32 without rounding it first."""
        if not exact or self.setting.device != "cuda":
            return nullcontext()
        from sdengine.benchmarks.gpu import exact_products

        return exact_products()


def _load(task: dict[str, Any]) -> _Worker:
    module = importlib.import_module(task["module"])
    setting = Setting(**task["setting"])
    side = getattr(module, task["class"])(setting, task["precision"], Place(**task["place"]))
    return _Worker(side, setting)


def _answer(do: Callable[[], Answer]) -> Answer:
    """Return what was found, or in which way it failed."""
    # Only now: the package itself must not count as part of a foreign system's import.
    from sdengine.errors import OutOfMemoryError

    try:
        return {"state": "measured", **do()}
    except (MemoryError, OutOfMemoryError) as error:
        return {"state": "out of memory", "why": _line(error) or "memory ran out"}
    except Exception as error:
        traceback.print_exc()
        is_memory = "out of memory" in str(error).lower() or "can't allocate" in str(error)
        return {"state": "out of memory" if is_memory else "failed", "why": _line(error)}


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines) or type(error).__name__)[:400]


def main() -> int:
    """Serve commands until the input ends."""
    task = json.loads(sys.argv[1])
    with os.fdopen(task["answers"], "w", encoding="utf-8") as answers:
        worker: _Worker | None = None
        for line in sys.stdin:
            command = json.loads(line)
            name = command.pop("do")

            def do(name: str = name, command: dict[str, Any] = command) -> Answer:
                nonlocal worker
                if worker is None:
                    worker = _load(task)
                found: Answer = getattr(worker, name)(**command)
                return found

            print(json.dumps(_answer(do)), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
