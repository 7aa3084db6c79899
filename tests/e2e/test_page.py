"""The page in headless Chromium: pictures of the demo model are asked for as people do it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.browser import PROMPT, REFUSED, Open, given_picture, pixels
from support.served import serving

import sdengine
from sdengine.serving.jobs import CANCELLED
from sdengine.serving.limits import Limits
from sdengine.serving.service import Service
from sdengine.serving.tokens import Tokens, add_token, read_tokens

if TYPE_CHECKING:
    from playwright.sync_api import Route


def test_a_picture_is_made_with_progress_and_a_live_preview(visit: Open) -> None:
    one = visit().ready()
    one.page.select_option("#preview_every", "1")
    one.ask(steps=40, batch_size=2)
    preview = one.page.wait_for_selector("img.preview")
    assert preview is not None
    source = preview.get_attribute("src")
    assert source is not None and source.startswith("data:image/png;base64,")
    one.page.wait_for_function(
        """() => /^Step [0-9]+ of 40, about .* left$/.test(
            document.getElementById('progress-text').textContent)"""
    )
    assert "%" in one.page.title()
    one.page.wait_for_selector("#gallery li")
    assert one.count() == 2
    assert one.page.locator("#frame button").count() == 2
    assert one.page.locator("#running").is_hidden()
    assert one.page.title() == "sdengine"
    assert one.page.inner_text("#said") == "2 pictures are there."
    one.open()
    assert one.page.inner_text("#parameters").startswith(PROMPT)
    assert "Steps: 40" in one.page.inner_text("#parameters")
    assert "U-Net" in one.page.inner_text("#timings")


@pytest.mark.parametrize("by", ["button", "key"])
def test_cancelling(visit: Open, server: tuple[str, Service], by: str) -> None:
    one = visit().ready()
    one.ask(steps=190)
    one.page.wait_for_selector("#progress-text:has-text('Step')")
    if by == "button":
        one.page.click("#cancel")
    else:
        one.page.keyboard.press("Escape")
    one.page.wait_for_selector("#running", state="hidden")
    assert one.page.inner_text("#said") == "Cancelled."
    assert one.count() == 0
    assert list(server[1].jobs)[-1].status == CANCELLED


def test_jobs_wait_in_their_order_and_one_of_them_is_taken_back(visit: Open) -> None:
    one = visit().ready()
    one.ask(steps=120)
    one.ask("a green star on white", steps=9)
    one.ask("a pink heart on white", steps=8)
    rows = one.page.locator("#waiting li")
    assert rows.count() == 2
    rows.nth(0).get_by_text("Waiting").wait_for()
    rows.nth(0).get_by_role("button").click()
    one.page.wait_for_function("() => document.querySelectorAll('#waiting li').length === 1")
    assert one.page.inner_text("#waiting").startswith("a pink heart")
    one.page.keyboard.press("Escape")
    one.page.wait_for_selector("#gallery li")
    one.page.wait_for_selector("#running", state="hidden")
    assert one.count() == 1


def test_leaving_the_page_cancels_what_it_asked_for(
    visit: Open, server: tuple[str, Service]
) -> None:
    one = visit().ready()
    one.ask(steps=190)
    one.page.wait_for_selector("#progress-text:has-text('Step')")
    job = list(server[1].jobs)[-1]
    one.page.goto("about:blank")
    assert job.cancel.wait(5)


def test_again_is_the_same_picture_and_a_new_seed_another(visit: Open) -> None:
    one = visit().ready()
    one.generate(seed=18446744073709551615)  # which a number of JavaScript would round
    one.open()
    assert one.page.inner_text("#large-title") == "Seed 18446744073709551615"
    first = one.saved()
    one.page.click("#again")
    one.page.wait_for_function("() => document.querySelectorAll('#gallery li').length === 2")
    one.open()
    assert one.saved() == first
    one.page.click("#again-new")
    one.page.wait_for_function("() => document.querySelectorAll('#gallery li').length === 3")
    one.open()
    other = one.saved()
    assert (pixels(other) != pixels(first)).any()
    assert "18446744073709551615" not in one.page.inner_text("#parameters")
    one.page.keyboard.press("ArrowRight")
    assert one.page.inner_text("#large-title") == "Seed 18446744073709551615"
    one.page.click("#into-form")
    assert one.page.input_value("#seed") == "18446744073709551615"
    assert not one.page.is_checked("#random")


def test_errors_stand_beside_their_fields(visit: Open) -> None:
    one = visit(allowed=(REFUSED,)).ready()
    for name, value, word in (
        ("width", "100", "multiple"),
        ("steps", "", "number"),
        ("steps", "500", "at most"),
        ("seed", "-1", "whole number"),
        ("guidance_scale", "1000", "100"),
    ):
        usual = one.page.input_value(f"#{name}")
        one.ask(**{name: value})
        error = one.page.wait_for_selector(f'[data-field="{name}"] .error')
        assert error is not None and word in error.inner_text()
        assert one.page.get_attribute(f"#{name}", "aria-invalid") == "true"
        assert one.page.evaluate("document.activeElement.id") == name
        one.page.fill(f"#{name}", usual)
    one.generate(steps=4)
    assert one.page.locator(".field > .error").count() == 0
    assert one.page.locator("#running").is_hidden()


def test_a_full_queue_is_said_in_words(visit: Open, demo_engine: sdengine.Engine) -> None:
    limits = Limits(max_queue=1, max_queue_of_token=1)
    with serving({"demo": demo_engine}, limits=limits) as (url, _):
        one = visit(url, (REFUSED,)).ready()
        one.ask(steps=150)
        one.page.wait_for_selector("#progress-text:has-text('Step')")
        one.ask(steps=150)
        one.ask(steps=150)
        one.page.wait_for_selector("#form-error:has-text('the queue is full')")
        one.page.keyboard.press("Escape")
        one.page.wait_for_function("() => document.querySelectorAll('#waiting li').length === 0")
        one.page.keyboard.press("Escape")
        one.page.wait_for_selector("#running", state="hidden")


def test_keys_alone_are_enough(visit: Open) -> None:
    one = visit().ready()
    keys = one.page.keyboard
    assert one.page.evaluate("document.activeElement.id") == "prompt"
    keys.type(PROMPT)
    reached: list[str] = []
    while "generate" not in reached:
        assert len(reached) < 20
        keys.press("Tab")
        where = "document.activeElement.id || document.activeElement.tagName"
        reached.append(one.page.evaluate(where))
        style = "getComputedStyle(document.activeElement).outlineStyle"
        assert one.page.evaluate(style) != "none", reached
    order = ["negative_prompt", "width", "height", "batch_size", "sampler", "schedule", "steps"]
    assert reached[:7] == order
    one.page.focus("#prompt")
    keys.press("Control+Enter")
    one.page.wait_for_selector("#gallery li")
    one.page.focus("#generate")
    keys.press("Tab")  # the new picture
    keys.press("Enter")
    one.page.wait_for_selector("#large[open]")
    keys.press("Escape")
    one.page.wait_for_selector("#large", state="hidden")
    keys.press("Tab")  # the same in the gallery
    keys.press("Enter")
    one.page.wait_for_selector("#large[open]")
    one.page.focus("#again")
    keys.press("Enter")
    one.page.wait_for_function("() => document.querySelectorAll('#gallery li').length === 2")


def test_a_token_is_asked_for_and_kept_for_the_visit(
    visit: Open, demo_engine: sdengine.Engine, tmp_path: Path
) -> None:
    secret = add_token(tmp_path / "tokens.json", "anna")
    tokens = Tokens(read_tokens(tmp_path / "tokens.json"))
    with serving({"demo": demo_engine}, tokens=tokens) as (url, _):
        one = visit(url, (REFUSED,))
        one.page.wait_for_selector("#token-dialog[open]")
        one.page.keyboard.press("Escape")  # without one nothing works
        assert one.page.locator("#token-dialog").is_visible()
        one.page.fill("#token", "wrong")
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#token-message:has-text('does not know this token')")
        one.page.fill("#token", secret)
        one.page.keyboard.press("Enter")
        one.ready().generate(steps=4)
        one.open()
        one.page.check('[name="copy"][value="curl"]')
        text = one.page.input_value("#copy-text")
        assert "$SDENGINE_TOKEN" in text and secret not in text
        one.page.reload()
        one.ready()
        assert one.page.locator("#token-dialog").is_hidden()
        assert secret not in one.page.content()


def test_settings_reach_the_server(visit: Open, server: tuple[str, Service]) -> None:
    one = visit().ready()
    one.page.select_option("#sampler", "euler_a")
    assert one.page.input_value("#schedule") == ""
    one.page.click("[data-part=more] > summary")
    one.page.select_option("#hires", "1.5")
    one.generate(steps=5, guidance_scale="2.5", seed=3, width=128, height=64, hires_strength="0.6")
    request = list(server[1].jobs)[-1].request
    assert (request.sampler, request.schedule, request.steps) == ("euler_a", "normal", 5)
    assert (request.guidance_scale, request.seed) == (2.5, 3)
    assert (request.width, request.height) == (128, 64)
    assert (request.hires, request.hires_strength) == (1.5, 0.6)
    one.page.click("[data-part=picture] > summary")
    one.give_picture(given_picture(128, 96))
    assert one.page.is_disabled("#hires") and one.page.is_disabled("#width")
    one.page.fill("#strength", "0.5")
    one.generate(steps=6)
    request = list(server[1].jobs)[-1].request
    assert (request.width, request.height, request.strength) == (128, 96, 0.5)
    assert request.hires is None
    one.page.select_option("#fit", "crop")
    one.generate(width=64, height=64)
    request = list(server[1].jobs)[-1].request
    assert (request.width, request.height, request.resize) == (64, 64, "crop")


def test_a_connection_that_breaks_is_made_again(visit: Open) -> None:
    one = visit(allowed=("Failed to load resource: net::ERR_",)).ready()
    broken: list[Route] = []

    def break_once(route: Route) -> None:
        if broken:
            route.continue_()
        else:
            broken.append(route)
            route.abort()

    one.page.route("**/events", break_once)
    one.generate(steps=20)
    assert len(broken) == 1
    one.page.route("**/jobs", lambda route: route.abort())
    one.ask()
    one.page.wait_for_selector("#form-error:has-text('does not answer')")
    assert one.page.locator("#running").is_hidden()


def test_the_gallery_keeps_a_hundred_pictures(visit: Open) -> None:
    one = visit(allowed=("Failed to load resource: net::ERR_FILE_NOT_FOUND",)).ready()
    one.generate(steps=2, seed=1)
    one.page.evaluate(
        """async () => {
            const {Gallery} = await import("/page/gallery.js");
            const gallery = new Gallery(() => {});
            const blobs = [new Blob(["x"]), new Blob(["x"])];
            for (let seed = 10n; seed < 70n; seed += 1n)
                gallery.add({prompt: "", seed}, "demo", {}, blobs);
        }"""
    )
    seeds = one.page.locator("#gallery .quiet").all_inner_texts()
    assert len(seeds) == 101  # and the one that the other gallery made
    assert seeds[:4] == ["69", "70", "68", "69"]
    assert seeds[-2:] == ["21", "1"]
