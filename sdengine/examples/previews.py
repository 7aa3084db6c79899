"""Watch a picture appear: every fifth step brings a small decoded preview."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import sdengine


def main(folder: Path) -> None:
    """Write preview-<step>.png while the picture is made, then heart.png."""
    with sdengine.load("demo") as engine:
        prompt = "a pink heart in the top left corner on a white background"
        for step in engine.stream(prompt, seed=3, preview_every=5):
            if step.preview is not None:
                path = folder / f"preview-{step.index + 1:02d}.png"
                Image.fromarray(step.preview[0]).save(path)
                print(f"step {step.index + 1} of {step.total}, noise {step.sigma:.2f}: {path}")
            if step.result is not None:
                print(*step.result.save(folder / "heart.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
