"""A page in headless Chromium, with what tests do on it again and again."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Download, FilePayload, Page

PROMPT = "a large red circle on a blue background"
# What Chromium itself writes about answers that are errors.
REFUSED = "Failed to load resource: the server responded with a status of"
_VISIBLE = "#form[data-ready]"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


class Visit:
    """One visit to the page, which must end without an error in the console.

    Args:
        page: of the browser, not yet anywhere.
        url: of the server.
        allowed: beginnings of messages that the test itself brings about.
    """

    def __init__(self, page: Page, url: str, allowed: tuple[str, ...] = ()) -> None:
        self.page = page
        self.errors: list[str] = []

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not message.text.startswith(allowed):
                self.errors.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.set_default_timeout(15_000)
        page.goto(url)

    def ready(self) -> Visit:
        """Wait until the form is filled in by what the server has."""
        self.page.wait_for_selector(_VISIBLE)
        return self

    def generate(self, prompt: str = PROMPT, **values: object) -> None:
        """Fill in the form, ask, and wait for one more picture."""
        before = self.count()
        self.ask(prompt, **values)
        self.page.wait_for_function(
            "n => document.querySelectorAll('#gallery li').length > n", arg=before
        )

    def ask(self, prompt: str = PROMPT, **values: object) -> None:
        """Fill in the form and ask."""
        self.page.fill("#prompt", prompt)
        for name, value in values.items():
            self.page.fill(f"#{name}", str(value))
        self.page.click("#generate")

    def give_picture(self, picture: FilePayload) -> None:
        """Choose the picture to begin with, and wait until it is read."""
        self.page.set_input_files("#image-holder input", picture)
        self.page.wait_for_selector("#image-holder .has-picture")

    def count(self) -> int:
        """How many pictures the gallery has."""
        return self.page.locator("#gallery li").count()

    def open(self, number: int = 0) -> None:
        """Open a picture of the gallery large; 0 is the newest."""
        self.page.locator("#gallery button").nth(number).click()
        self.page.wait_for_selector("#large[open]")

    def saved(self, selector: str = "#download") -> bytes:
        """Click, and return the file that is saved."""
        with self.page.expect_download() as download:
            self.page.click(selector)
        return download.value.path().read_bytes()

    def save_files(self, folder: Path, count: int) -> None:
        """Save the files that a copied text needs, under the names that it calls them by."""
        downloads: list[Download] = []
        self.page.on("download", lambda one: downloads.append(one))
        self.page.click("#save-pictures")
        while len(downloads) < count:
            self.page.wait_for_timeout(20)
        for download in downloads:
            download.save_as(folder / download.suggested_filename)

    def drawn(self, *places: tuple[float, float]) -> None:
        """Draw on the mask by mouse from place to place, in fractions of its sides."""
        canvas = self.page.locator("#mask-canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=6)
        self.page.mouse.up()

    def painted(self) -> float:
        """Return how much of the mask is painted, 0 to 1."""
        found: float = self.page.evaluate(
            """() => {
                const canvas = document.getElementById("mask-canvas");
                const context = canvas.getContext("2d");
                const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
                let count = 0;
                for (let at = 3; at < data.length; at += 4) count += data[at] >= 128;
                return count / (data.length / 4);
            }"""
        )
        return found


Open = Callable[..., Visit]


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    """Return a picture's [H,W,3] pixels."""
    with Image.open(io.BytesIO(content)) as image:
        found: np.ndarray[Any, Any] = np.asarray(image.convert("RGB")).copy()
        return found


def given_picture(width: int = 128, height: int = 128, kind: str = "PNG") -> FilePayload:
    """Return a picture's file as it is chosen."""
    y, x = np.mgrid[0:height, 0:width]
    content = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(content).save(buffer, kind)
    return {"name": "given", "mimeType": f"image/{kind.lower()}", "buffer": buffer.getvalue()}
