"""The server under load: latencies, refusals, memory and fairness, and what HTTP costs.

    python benchmarks/serving_load.py --minutes 10
    python benchmarks/serving_load.py --only calls

A server of the demo model runs in a process of its own, with two tokens; clients here ask for
pictures of mixed sizes at times that chance gives (Poisson), for so many minutes each at 50, 80 and
120 % of what the server can make, and again at 80 %, where memory shall not have grown. What it can
make is measured first, by clients that always wait, until it keeps as many results as it ever does.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

import sdengine
from sdengine.benchmarks.measures import OtherLoad
from sdengine.benchmarks.modules import module_command
from sdengine.benchmarks.records import RESULTS, put_part
from sdengine.serving.limits import Limits
from sdengine.serving.tokens import add_token

SHARES = (0.5, 0.8, 1.2, 0.8)
# Sizes with their shares of the requests.
SIZES = (((128, 128), 0.6), ((96, 160), 0.2), ((192, 192), 0.2))
STEPS = 8
TOKENS = ("a", "b")
A_OF_ALL = 0.75  # that the first token asks for, of all requests
_MEMORY_SECONDS = 30.0  # between looks at the server's memory
_BLOCK, _WARM = 20, 3  # single calls of each side in a row, and those before that are not counted
_PROMPTS = ("a large red circle on a blue background", "a green star on white", "a pink heart")


@dataclass
class Outcome:
    """What became of one request.

    Args:
        token: that asked.
        status: completed, rejected, failed or lost.
        arrived: seconds since the start.
        seconds: from its arrival to its picture.
        waited: of them before it began.
    """

    token: str
    status: str
    arrived: float
    seconds: float
    waited: float = 0.0


@contextmanager
def server(folder: Path, threads: int, max_queue: int) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Run a server; give its address, its process and the tokens' secrets."""
    secrets = {name: add_token(folder / "tokens.json", name) for name in TOKENS}
    command = module_command("sdengine", "serve", "--port", 0, "--threads", threads, "--warm-up")
    command += ["--tokens", str(folder / "tokens.json"), "--max-queue", str(max_queue)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid, secrets
    finally:
        process.terminate()
        process.wait()


def fields(rng: random.Random) -> dict[str, Any]:
    """Return a request of chance."""
    ((width, height), _) = rng.choices(SIZES, [share for _, share in SIZES])[0]
    seed, prompt = rng.randrange(1 << 32), rng.choice(_PROMPTS)
    return {"prompt": prompt, "seed": seed, "steps": STEPS, "width": width, "height": height}


async def ask(client: httpx.AsyncClient, token: str, secret: str, asked: Any, start: float) -> Any:
    """Ask for a picture by the native API, wait for it and fetch it; return its Outcome."""
    arrived = time.monotonic() - start
    headers = {"Authorization": f"Bearer {secret}"}

    def ended(status: str, waited: float = 0.0) -> Outcome:
        return Outcome(token, status, arrived, time.monotonic() - start - arrived, waited)

    try:
        answer = await client.post("/api/v1/jobs", json={"request": asked}, headers=headers)
        if answer.status_code == 429:
            return ended("rejected")
        place = f"/api/v1/jobs/{answer.json()['id']}"
        last = ""
        async with client.stream(
            "GET", f"{place}/events?previews=false", headers=headers
        ) as stream:
            async for line in stream.aiter_lines():
                last = line if line.startswith("data: ") else last
        told = json.loads(last.removeprefix("data: "))
        if told["status"] != "completed":
            return ended("failed")
        picture = await client.get(f"{place}/images/0", headers=headers)
        complete = picture.content.startswith(b"\x89PNG") and b"IEND" in picture.content[-12:]
        return ended("completed" if complete else "lost", told["started"] - told["created"])
    except (httpx.HTTPError, KeyError, ValueError):
        return ended("lost")


async def closed(url: str, secrets: dict[str, str], seconds: float, clients: int) -> float:
    """Return the requests a second that clients who always wait for one get.

    They go on until the server keeps as many results of each token as it ever does.
    """
    rng, start = random.Random(1), time.monotonic()
    done = 0  # of all tokens together; turns are fair, so that each has its part

    async def always(client: httpx.AsyncClient, token: str) -> None:
        nonlocal done
        while time.monotonic() - start < seconds or done < len(TOKENS) * Limits().keep_jobs:
            outcome = await ask(client, token, secrets[token], fields(rng), start)
            done += outcome.status == "completed"

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=_LIMITS) as client:
        tokens = (TOKENS[number % len(TOKENS)] for number in range(clients))
        await asyncio.gather(*(always(client, token) for token in tokens))
    return done / (time.monotonic() - start)


_LIMITS = httpx.Limits(max_connections=400, max_keepalive_connections=100)


async def poisson(
    url: str, secrets: dict[str, str], rate: float, seconds: float, seed: int
) -> list[Outcome]:
    """Return what becomes of requests that arrive by chance at a rate a second."""
    rng, start = random.Random(seed), time.monotonic()
    asked: list[asyncio.Task[Outcome]] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=_LIMITS) as client:
        at = 0.0
        while (at := at + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, start + at - time.monotonic()))
            token = TOKENS[0] if rng.random() < A_OF_ALL else TOKENS[1]
            call = ask(client, token, secrets[token], fields(rng), start)
            asked.append(asyncio.create_task(call))
        return list(await asyncio.gather(*asked))


@contextmanager
def watched_memory(process: psutil.Process) -> Iterator[list[int]]:
    """Give a list that grows by the bytes that a process has in memory, now and then."""
    found, is_over = [process.memory_info().rss], threading.Event()

    def look() -> None:
        while not is_over.wait(_MEMORY_SECONDS):
            found.append(process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()
        found.append(process.memory_info().rss)


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Return the figures of a level."""
    counts = {name: 0 for name in ("completed", "rejected", "failed", "lost")}
    for outcome in outcomes:
        counts[outcome.status] += 1
    told: dict[str, Any] = {"asked": len(outcomes), **counts}
    told |= {"per_second": counts["completed"] / seconds, **_percentiles(outcomes)}
    told["tokens"] = {
        token: {
            "asked": len(own),
            "rejected": sum(one.status == "rejected" for one in own),
            **_percentiles(own),
        }
        for token in TOKENS
        if (own := [one for one in outcomes if one.token == token])
    }
    return told


def _percentiles(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    good = sorted(one.seconds for one in outcomes if one.status == "completed")
    waited = [one.waited for one in outcomes if one.status == "completed"]
    if not good:
        return {"p50": None, "p95": None, "p99": None, "waited_p50": None}
    found = {f"p{p}": good[min(len(good) - 1, len(good) * p // 100)] for p in (50, 95, 99)}
    return {**found, "waited_p50": statistics.median(waited)}


def overhead(url: str, secrets: dict[str, str], threads: int, rounds: int) -> dict[str, Any]:
    """Return what a blocking call costs over the engine in this process."""
    asked = {"prompt": _PROMPTS[0], "steps": STEPS, "seed": 7, "width": 128, "height": 128}
    rows: dict[str, list[float]] = {"engine": [], "engine_and_png": [], "http": []}
    fields = {**asked, "size": "128x128", "response_format": "b64_json"}
    del fields["width"], fields["height"]
    body = json.dumps(fields)
    headers = {"Authorization": f"Bearer {secrets['a']}", "Content-Type": "application/json"}
    # The standard library's client, because others take a millisecond themselves.
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
    with sdengine.load("demo", threads=threads) as engine, closing(client):
        for first in range(0, rounds, _BLOCK):
            # In blocks, because each process would find the other one's data in the caches.
            for number in range(-_WARM, min(_BLOCK, rounds - first)):
                began = time.perf_counter()
                made = engine.generate(**asked)  # type: ignore[arg-type]
                middle = time.perf_counter()
                png = made.png()
                end = time.perf_counter()
                if number >= 0:
                    rows["engine"].append(middle - began)
                    rows["engine_and_png"].append(end - began)
            for number in range(-_WARM, min(_BLOCK, rounds - first)):
                began = time.perf_counter()
                client.request("POST", "/v1/images/generations", body, headers)
                answer = client.getresponse()
                content = answer.read()
                end = time.perf_counter()
                assert answer.status == 200 and len(content) > len(png), content[:1000]
                if number >= 0:
                    rows["http"].append(end - began)
    found = {f"{name}_ms": 1000 * statistics.median(row) for name, row in rows.items()}
    return {**found, "rounds": rounds}


def load(url: str, pid: int, secrets: dict[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """Return what became of requests at all levels, and of the server's memory."""
    process, levels = psutil.Process(pid), []
    capacity = asyncio.run(closed(url, secrets, given.calibrate, 8))
    print(f"capacity {capacity:.2f} a second", flush=True)
    for number, share in enumerate(SHARES):
        seconds = 60 * given.minutes
        with watched_memory(process) as rss:
            outcomes = asyncio.run(poisson(url, secrets, capacity * share, seconds, number))
        level = {"share": share, **summary(outcomes, seconds), "rss": rss}
        levels.append(level)
        print(json.dumps(level), flush=True)
    return {
        "minutes": given.minutes,
        "memory_seconds": _MEMORY_SECONDS,
        "sizes": [{"size": list(size), "share": share} for size, share in SIZES],
        "share_of_a": A_OF_ALL,
        "capacity_per_second": capacity,
        "levels": levels,
        "file_descriptors": process.num_fds(),
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("calls", "load"), help="of the two parts of the record")
    parser.add_argument("--minutes", type=float, default=10, help="of each level")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-queue", type=int, default=64)
    parser.add_argument("--calibrate", type=float, default=120, help="seconds, or more")
    parser.add_argument("--rounds", type=int, default=200, help="of single calls")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        server(Path(folder), given.threads, given.max_queue) as (url, pid, secrets),
    ):
        for part in (given.only,) if given.only else ("calls", "load"):
            others = OtherLoad()
            if part == "calls":
                found = overhead(url, secrets, given.threads, given.rounds)
            else:
                found = load(url, pid, secrets, given)
            print(json.dumps(found), flush=True)
            figures = {
                "threads": given.threads,
                "max_queue": given.max_queue,
                "steps": STEPS,
                **found,
                "processors": sorted(os.sched_getaffinity(0)),
                "other_load_percent": others.percent(),
            }
            put_part(given.output / "serving.json", part, figures, "fastapi", "uvicorn")


if __name__ == "__main__":
    main()
