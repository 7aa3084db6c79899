"""Start from pictures: paint a circle over, change a part of it and nothing else, enlarge it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import sdengine


def main(folder: Path) -> None:
    """Write red.png, yellow.png, made from it, star.png with its border, wide.png around it."""
    with sdengine.load("demo") as engine:
        red = engine.generate("a large red circle on a blue background", seed=7)
        print(*red.save(folder / "red.png"))
        prompt = "a large yellow circle on a green background"
        yellow = engine.generate(prompt, image=folder / "red.png", strength=0.7, seed=1)
        print(*yellow.save(folder / "yellow.png"))

        mask = np.zeros(red.arrays[0].shape[:2], np.uint8)
        mask[16:-16, 16:-16] = 255  # white may change
        prompt = "a large green star on a blue background"
        star = engine.generate(prompt, image=red.images[0], mask=mask, strength=1.0, seed=2)
        print(*star.save(folder / "star.png"))

        prompt = "a large red circle on a blue background"
        wide = engine.generate(prompt, image=red.images[0], outpaint={"left": 64}, seed=3)
        print(*wide.save(folder / "wide.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
