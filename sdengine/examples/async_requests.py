"""Serve requests from an event loop: they queue, and one of them is cancelled half-way."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import sdengine


async def serve(folder: Path) -> None:
    """Write the pictures of the requests that are not cancelled."""
    with sdengine.load("demo") as engine:
        shapes = ("circle", "star", "ring")
        tasks = [
            asyncio.create_task(engine.generate_async(f"a green {shape} on a black background"))
            for shape in shapes
        ]
        unwanted = asyncio.create_task(engine.generate_async("a square", steps=1000))
        results = await asyncio.gather(*tasks)
        for shape, result in zip(shapes, results, strict=True):
            print(*result.save(folder / f"{shape}.png"))
        unwanted.cancel()
        try:
            await unwanted
        except asyncio.CancelledError:
            print("the last request was cancelled")


def main(folder: Path) -> None:
    """Run the event loop."""
    asyncio.run(serve(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
