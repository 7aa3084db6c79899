"""Pictures of the page as it is seen: `python -m support.page_pictures FOLDER` from tests."""

from __future__ import annotations

import argparse
import io
import itertools
from pathlib import Path
from typing import Literal

from PIL import Image
from support.browser import Visit, chromium
from support.served import serving

import sdengine

SIZES = {1280: 1240, 400: 860}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PROMPTS = (
    ("a green star left of a pink heart on white", 3),
    ("a large yellow circle on a purple background", 12),
    ("a large red circle on a blue background", 7),
)
_COLOURS = 192


def write_pictures(folder: Path) -> list[Path]:
    """Write a picture of the page for each width and scheme; return their places."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    with (
        sdengine.load("demo") as engine,
        serving({"demo": engine}) as (url, _),
        chromium() as browser,
    ):
        for (width, height), scheme in itertools.product(SIZES.items(), SCHEMES):
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            visit = Visit(page, url).ready()
            for prompt, seed in PROMPTS:
                visit.generate(prompt, seed=seed, batch_size=2)
            visit.open()
            page.click("#use")
            page.check("#with-mask")
            visit.drawn((0.35, 0.4), (0.6, 0.45), (0.5, 0.6))
            page.locator("#with-mask").evaluate("e => e.blur()")
            page.evaluate("() => document.querySelector('.fields').scrollTo(0, 0)")
            page.evaluate("() => scrollTo(0, 0)")
            if width < 1000:
                page.locator("[data-part=picture]").evaluate("e => e.open = false")
            found.append(folder / f"{width}-{scheme}.png")
            found[-1].write_bytes(_small(page.screenshot(full_page=width < 1000)))
            page.close()
    return found


def _small(content: bytes) -> bytes:
    """Return a PNG of few colours."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").quantize(_COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for path in write_pictures(parser.parse_args().folder):
        print(path, path.stat().st_size)
