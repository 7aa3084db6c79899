"""One point of a growth: an engine in a process of its own, which serves a request when told to.

Its first line of standard output has peak memory and start times, each further one the times of a
request, which a line of standard input asked for. So several points can take turns, and none's
memory holds another's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import sdengine
from sdengine.benchmarks.measures import peak_bytes
from sdengine.benchmarks.modules import module_command
from sdengine.benchmarks.seeded_controlnets import edges
from sdengine.benchmarks.suite.setting import Setting
from sdengine.errors import DeviceError
from sdengine.images.timings import Timings
from sdengine.request.request import Request

_CONTROL = "control_"
# Each is one token.
_WORDS = ("cat", "dog", "car", "tree", "house", "boat", "bird", "fish")
_ROOM = 75


@dataclass(frozen=True)
class Point:
    """What one process serves.

    Args:
        bundle, backend, precision: as `sdengine.load` takes them.
        setting: size, batch, steps and threads.
        chunks: of 75 tokens that the prompt has; 0 for the suite's own prompt.
        controls: names of the bundle's controls that steer.
        loras: files that are merged, for each request anew.
    """

    bundle: str
    backend: str
    precision: str
    setting: Setting
    chunks: int = 0
    controls: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()

    def requests(self) -> Iterator[Request]:
        """Yield requests that cost the same; LoRAs have another strength in each."""
        given: dict[str, Any] = {}
        if self.controls:
            picture = edges(self.setting.resolution)
            given["controls"] = tuple(sdengine.Control(name, picture) for name in self.controls)
        number = 0
        while True:
            if self.loras:
                given["loras"] = dict.fromkeys(self.loras, 0.5 / (1 + number / 1000))
            request = self.setting.request(**given)
            yield replace(request, prompt=prompt_of(self.chunks)) if self.chunks else request
            number += 1


def prompt_of(chunks: int) -> str:
    """Return a prompt of so many chunks, each of other words: equal ones are encoded once."""
    words = [_WORDS[number % len(_WORDS)] for number in range(chunks)]
    return " ".join(word for word in words for _ in range(_ROOM))


def stages_of(timings: Timings, steps: int) -> dict[str, float]:
    """Return a request's milliseconds: of a step for what each step runs, else of the whole.

    Stages that took nothing are missing; "weights" is reading and merging what the request changes.
    """
    stages = timings.stages
    controls = sum(time.ms for name, time in stages.items() if name.startswith(_CONTROL))
    found = {
        "weights": timings.load_ms,
        "text_encoder": timings.text_encoder_ms,
        "controls_step": controls / steps,
        "unet_step": timings.unet_ms / steps,
        "vae_decoder": timings.vae_decoder_ms,
    }
    ends = {"outside": timings.other_ms, "end_to_end": timings.total_ms}
    return {**{name: ms for name, ms in found.items() if ms > 0}, **ends}


class PointProcess:
    """A point's process; making one loads the engine and serves its first request.

    Raises:
        DeviceError: it ended; the message has its last line.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self._errors = tempfile.TemporaryFile(  # noqa: SIM115 - as long as the process
            "w+", encoding="utf-8", errors="replace"
        )
        self._process = subprocess.Popen(
            module_command("sdengine.benchmarks.suite.growth.point", json.dumps(asdict(point))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.started: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def serve(self) -> dict[str, float]:
        """Serve one request; return the milliseconds of its stages."""
        assert self._process.stdin is not None
        try:
            print(file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> PointProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> DeviceError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or [f"exit status {status}"]
        return DeviceError(lines[-1].removeprefix("sdengine.errors."))


def main(task: str) -> None:
    """Serve a point's requests until standard input ends."""
    fields = json.loads(task)
    lists = {name: tuple(fields[name]) for name in ("controls", "loras")}
    point = Point(**{**fields, **lists, "setting": Setting(**fields["setting"])})
    requests = point.requests()
    started = time.perf_counter()
    threads = point.setting.threads
    with sdengine.load(point.bundle, point.backend, point.precision, threads) as engine:
        engine.run(next(requests))
        first = {
            "first_seconds": round(time.perf_counter() - started, 3),
            "peak_bytes": peak_bytes(),
            "precision": engine.precision,
        }
        print(json.dumps(first), flush=True)
        for _ in sys.stdin:
            engine.forget_prompts()
            timings = engine.run(next(requests)).timings
            print(json.dumps(stages_of(timings, point.setting.steps)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
