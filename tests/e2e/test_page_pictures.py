"""The page with pictures that people bring: masks, drops, ControlNets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.browser import Open, given_picture, pixels
from support.served import serving

import sdengine
from sdengine.serving.service import Service

# Pictures are read after Generate was pressed.
_READ_LATE = """() => {
    const {decode} = HTMLImageElement.prototype;
    const asked = new Promise((resolve) => {
        document.getElementById("generate").addEventListener("click", resolve);
    });
    HTMLImageElement.prototype.decode = async function () {
        await asked;
        await new Promise((resolve) => setTimeout(resolve, 100)); // until the form is sent
        return decode.call(this);
    };
}"""


def test_a_part_is_painted_by_mouse_and_the_rest_stays_to_the_byte(
    visit: Open, tmp_path: Path, run_text: Callable[..., bytes]
) -> None:
    one = visit().ready()
    one.generate(seed=7)
    one.open()
    before = pixels(one.saved())
    one.page.click("#use")
    one.page.check("#with-mask")
    one.page.fill("#brush-size", "30")
    one.drawn((0.3, 0.5), (0.5, 0.5))
    assert 0.05 < one.painted() < 0.4
    one.page.fill("#strength", "1")
    one.generate("a large yellow circle on a blue background", seed=11)
    one.open()
    content = one.saved()
    after = pixels(content)
    y, x = np.mgrid[0:128, 0:128]
    reached = 15 + 10 + 2  # half a brush, the soft edge, what a pixel of the screen is
    nearest = np.clip(x + 0.5, 0.3 * 128, 0.5 * 128)
    far = np.hypot(x + 0.5 - nearest, y + 0.5 - 64) > reached
    assert 0.3 < far.mean() < 0.95
    np.testing.assert_array_equal(after[far], before[far])
    assert (after[~far] != before[~far]).any(axis=-1).mean() > 0.3
    # The command, with the files that it names, makes the same file.
    one.save_files(tmp_path, 2)
    assert run_text(one.page.input_value("#copy-text")) == content


def test_the_mask_is_painted_erased_inverted_and_taken_back(visit: Open) -> None:
    one = visit().ready()
    one.page.click("[data-part=picture] > summary")
    one.page.set_input_files("#image-holder input", given_picture(96, 64, "JPEG"))
    one.page.check("#with-mask")
    one.page.click("#generate")
    assert "Nothing is painted" in one.page.inner_text("#mask-part .error")
    one.page.fill("#brush-size", "20")
    one.drawn((0.5, 0.5))
    dot = one.painted()
    assert 0.03 < dot < 0.08
    one.page.click("#mask-invert")
    assert one.painted() == pytest.approx(1 - dot, abs=0.01)
    one.page.check("#brush-erase")
    one.drawn((0.2, 0.2), (0.8, 0.2))
    assert one.painted() < 0.9 - dot
    one.page.click("#mask-undo")
    one.page.click("#mask-undo")
    assert one.painted() == dot
    one.page.click("#mask-clear")
    assert one.painted() == 0
    one.page.uncheck("#brush-erase")
    one.page.click("#mask-larger")
    one.drawn((0.1, 0.1), (0.9, 0.9))
    one.page.click("#mask-done")
    assert one.painted() > 0.15
    one.page.click("#mask-clear")
    one.page.focus("#mask-canvas")  # and with keys alone
    one.page.keyboard.down(" ")
    for _ in range(4):
        one.page.keyboard.press("ArrowLeft")
    one.page.keyboard.up(" ")
    line = one.painted()
    assert line > dot
    one.page.keyboard.press("ArrowUp")
    assert one.painted() == line
    one.page.keyboard.press("Control+z")
    assert one.painted() == 0


def test_a_finger_paints_too(visit: Open) -> None:
    one = visit(has_touch=True, viewport={"width": 400, "height": 800}).ready()
    one.page.click("[data-part=picture] > summary")
    one.page.set_input_files("#image-holder input", given_picture())
    one.page.check("#with-mask")
    canvas = one.page.locator("#mask-canvas")
    canvas.scroll_into_view_if_needed()
    canvas.tap()
    assert one.painted() > 0.01


def test_a_picture_that_is_being_read_is_waited_for(
    visit: Open, server: tuple[str, Service]
) -> None:
    one = visit().ready()
    one.page.click("[data-part=picture] > summary")
    one.page.evaluate(_READ_LATE)
    one.page.set_input_files("#image-holder input", given_picture(64, 64))
    one.page.set_input_files("#image-holder input", given_picture(128, 96))
    assert one.page.locator("#with-picture").is_hidden()
    one.generate(steps=4)
    request = list(server[1].jobs)[-1].request
    assert (request.width, request.height, request.strength) == (128, 96, 0.75)


def test_a_picture_that_cannot_be_read_is_not_left_out(
    visit: Open, server: tuple[str, Service]
) -> None:
    one = visit().ready()
    one.page.click("[data-part=picture] > summary")
    broken = given_picture()
    broken["buffer"] = b"no picture"
    before = len(list(server[1].jobs))
    one.page.evaluate(_READ_LATE)
    one.page.set_input_files("#image-holder input", broken)
    one.ask()
    one.page.wait_for_selector("#image-holder .error:has-text('no picture')")
    assert len(list(server[1].jobs)) == before


def test_pictures_are_dropped_and_pasted(visit: Open) -> None:
    one = visit().ready()
    for event, width in (("drop", 40), ("paste", 56)):
        one.page.evaluate(
            """async ([event, bytes]) => {
                const file = new File([new Uint8Array(bytes)], "x.png", {type: "image/png"});
                const transfer = new DataTransfer();
                transfer.items.add(file);
                const options = {bubbles: true, cancelable: true};
                document.body.dispatchEvent(event === "drop"
                    ? new DragEvent("drop", {...options, dataTransfer: transfer})
                    : new ClipboardEvent("paste", {...options, clipboardData: transfer}));
            }""",
            [event, list(given_picture(width)["buffer"])],
        )
        one.page.wait_for_selector(f"#image-holder .facts:has-text('{width} ')")
    broken = given_picture()
    broken["buffer"] = b"no picture"
    one.page.set_input_files("#image-holder input", broken)
    one.page.wait_for_selector("#image-holder .error:has-text('no picture')")
    one.page.click("#image-holder .remove")
    assert one.page.locator("#with-picture").is_hidden()
    assert one.page.locator("#image-holder .error").count() == 0


@pytest.mark.slow
def test_a_controlnet_steers(
    visit: Open, demo_engine: sdengine.Engine, tmp_path: Path, run_text: Callable[..., bytes]
) -> None:
    sdengine.build("demo", tmp_path / "steered", controls={"edges": "demo-edges"})
    with sdengine.load(tmp_path / "steered") as steered:
        engines = {"demo": demo_engine, "steered": steered}
        with serving(engines) as (url, service):
            one = visit(url).ready()
            assert one.page.locator("#controls-part").is_hidden()
            one.page.select_option("#bundle", "steered")
            one.generate(seed=7)
            one.open()
            one.page.click("#use-control")
            one.page.select_option('[name="preprocess"]', "canny")
            one.page.fill('[name="end"]', "0.8")
            one.generate("a green circle on white", seed=8)
            (control,) = list(service.jobs)[-1].request.controls
            assert (control.network, control.preprocess, control.end) == ("edges", "canny", 0.8)
            assert list(service.jobs)[-1].bundle == "steered"
            one.open()
            wanted = one.saved()
            one.save_files(tmp_path, 1)
            for kind in ("command", "python"):
                one.page.check(f'[name="copy"][value="{kind}"]')
                text = one.page.input_value("#copy-text")
                if kind == "python":
                    command = [sys.executable, "-c", text]
                    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
                    assert (tmp_path / "out-1.png").read_bytes() == wanted
                else:
                    assert run_text(text) == wanted
