"""Vary pictures: a data set with its captions, a few copies each, more or less like the originals.

A strength of 0.4 keeps what a picture is of and where things are; from 0.8 on it is another picture
of the same caption, in which the original is hard to know again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import sdengine

COPIES = 2


def vary(engine: sdengine.Engine, source: Path, target: Path, strength: float) -> None:
    """Write copies of each picture of a folder that has a caption beside it, and the captions.

    Args:
        engine: that makes them.
        source: with a.png and a.txt, and so on.
        target: gets a-1.png, a-1.txt, ...
        strength: how far the copies go from the pictures.
    """
    target.mkdir(parents=True, exist_ok=True)
    for picture in sorted(source.glob("*.png")):
        caption = picture.with_suffix(".txt").read_text(encoding="utf-8")
        result = engine.generate(
            caption, image=picture, strength=strength, batch_size=COPIES, seed=0
        )
        for file in result.save(target / picture.name, overwrite=True):
            shutil.copyfile(picture.with_suffix(".txt"), file.with_suffix(".txt"))
            print(file)


def main(folder: Path) -> None:
    """Write pictures with captions into a folder `own`; `alike` and `others` get their copies."""
    captions = {"circle": "a red circle on a blue background", "star": "a green star on white"}
    own = folder / "own"
    own.mkdir(exist_ok=True)
    with sdengine.load("demo") as engine:
        for name, caption in captions.items():
            engine.generate(caption, seed=7).save(own / f"{name}.png", overwrite=True)
            (own / f"{name}.txt").write_text(caption, encoding="utf-8")
        vary(engine, own, folder / "alike", strength=0.4)
        vary(engine, own, folder / "others", strength=0.9)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
