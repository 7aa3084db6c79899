"""Two engines beside each other, each asked by several threads; answers come in order."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sdengine


def main(folder: Path) -> None:
    """Write one picture for each of eight requests."""
    with sdengine.load("demo", threads=1) as first, sdengine.load("demo", threads=1) as second:

        def work(number: int) -> sdengine.Result:
            engine = (first, second)[number % 2]
            return engine.generate("a yellow triangle on a purple background", seed=number)

        with ThreadPoolExecutor(8) as pool:
            for number, result in enumerate(pool.map(work, range(8))):
                print(*result.save(folder / f"triangle-{number}.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
