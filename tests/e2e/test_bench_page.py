"""The page of the suite's records in headless Chromium, opened as the file that it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import Visit
from support.suite_records import evening, hostile, write_pictures, write_records

from sdengine.benchmarks.suite.page.gathered import Sourced
from sdengine.benchmarks.suite.page.page import render
from sdengine.benchmarks.suite.suite_records import read

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

Open = Callable[..., Visit]
VIEWS = ("summary", "speed", "memory", "scaling", "roofline", "parity", "conditions")
PHONE: dict[str, Any] = {"viewport": {"width": 400, "height": 800}}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page of usual records and one of hostile ones."""
    folder = tmp_path_factory.mktemp("pages")
    write_pictures(folder, ["native bf16", "eager fp32"])
    everything = evening()
    usual = [everything[at] for at in (0, 4, 6, 8, 10)]  # fewer are quicker
    for name, records in (("usual", usual), ("hostile", hostile())):
        file = write_records(folder / f"{name}.jsonl", records)
        html = render([Sourced(one, folder) for one in read([file])])
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return folder


@pytest.fixture
def page_of(browser: Browser, pages: Path) -> Iterator[Open]:
    """Open a page; at the end nothing may have been asked for or wrong in the console."""
    contexts, visits, asked = [], [], list[str]()

    def start(name: str = "usual", anchor: str = "", **options: Any) -> Visit:
        context = browser.new_context(**options)
        context.on("request", lambda request: asked.append(request.url))
        contexts.append(context)
        url = (pages / f"{name}.html").as_uri() + anchor
        visits.append(Visit(context.new_page(), url))
        return visits[-1]

    yield start
    for context in contexts:
        context.close()
    assert [error for one in visits for error in one.errors] == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


def go(one: Visit, view: str) -> None:
    """Follow a link of the navigation."""
    one.page.click(f'nav a[href="#{view}"]')
    one.page.wait_for_selector(f"#{view}.shown")


def seen(one: Visit, selector: str) -> list[str]:
    """Return the ids or numbers of the elements that are shown."""
    found: list[str] = one.page.evaluate(
        """selector => [...document.querySelectorAll(selector)]
            .filter(element => element.getClientRects().length)
            .map(element => element.id || element.dataset.setting)""",
        selector,
    )
    return found


def test_views_are_switched_and_have_addresses(page_of: Open) -> None:
    one = page_of()
    assert seen(one, ".view") == ["summary"]
    for name in VIEWS:
        go(one, name)
        assert seen(one, ".view") == [name]
        assert one.page.locator("nav [aria-current]").get_attribute("href") == f"#{name}"
    one.page.go_back()
    one.page.wait_for_selector("#parity.shown")
    assert seen(one, ".view") == ["parity"]
    assert seen(page_of(anchor="#memory/2"), ".view, .setting") == ["memory", "2"]


def test_the_setting_is_chosen(page_of: Open) -> None:
    one = page_of(anchor="#speed")
    assert seen(one, ".setting") == ["1"]
    one.page.select_option("#setting", "2")
    assert seen(one, ".setting") == ["2"]
    assert one.page.evaluate("location.hash") == "#speed/2"
    go(one, "memory")
    assert seen(one, ".setting") == ["2"]
    go(one, "scaling")
    assert not one.page.locator("#choice").is_visible()


def test_keys_alone_are_enough(page_of: Open) -> None:
    one = page_of()
    keys = one.page.keyboard
    one.page.focus("#theme")
    for _ in range(2):
        keys.press("Tab")
    keys.press("Enter")
    one.page.wait_for_selector("#speed.shown")
    one.page.locator("#speed summary").first.focus()
    keys.press("Enter")
    assert one.page.locator("#speed details[open] table").first.is_visible()


def test_light_and_dark(page_of: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    bar = "getComputedStyle(document.querySelector('.f-ours0')).fill"
    colours = {}
    for scheme, other in (("light", "dark"), ("dark", "light")):
        one = page_of(color_scheme=scheme)
        colours[scheme] = [one.page.evaluate(what) for what in (ground, bar)]
        one.page.click("#theme")
        colours[f"to {other}"] = [one.page.evaluate(what) for what in (ground, bar)]
        one.page.reload()
        assert one.page.evaluate(ground) == colours[f"to {other}"][0]
    assert colours["light"] == colours["to light"]
    assert colours["dark"] == colours["to dark"]
    assert all(a != b for a, b in zip(colours["light"], colours["dark"], strict=True))


@pytest.mark.parametrize("name", ["usual", "hostile"])
def test_a_phone_does_not_scroll_sideways(page_of: Open, name: str) -> None:
    one = page_of(name, **PHONE)
    for view in one.page.locator(".view").all():
        anchor = view.get_attribute("id")
        one.page.goto(f"{one.page.url.partition('#')[0]}#{anchor}")
        one.page.wait_for_selector(f"#{anchor}.shown")
        assert one.page.evaluate("document.documentElement.scrollWidth") == 400
        smallest = one.page.evaluate(
            """() => Math.min(...[...document.querySelectorAll(".view.shown svg text")]
                .filter(text => text.getClientRects().length)
                .map(text => text.getScreenCTM().a * parseFloat(getComputedStyle(text).fontSize)),
                99)"""
        )
        assert smallest >= 10.0


def test_each_width_has_its_drawing(page_of: Open) -> None:
    for width, name in ((400, "for-narrow"), (1280, "for-wide")):
        one = page_of(anchor="#roofline", viewport={"width": width, "height": 800})
        shown = one.page.evaluate(
            """() => [...document.querySelectorAll("#roofline .wide svg")]
                .filter(one => one.getClientRects().length).map(one => one.classList[1])"""
        )
        assert shown and set(shown) == {name}


def test_no_text_of_a_figure_leaves_its_card(page_of: Open) -> None:
    for width in (400, 700, 1280):
        one = page_of(viewport={"width": width, "height": 800}, java_script_enabled=False)
        outside = one.page.evaluate(
            """() => [...document.querySelectorAll(".card svg text")].filter(text => {
                const here = text.getBoundingClientRect();
                const card = text.closest(".card").getBoundingClientRect();
                return here.width && (here.left < card.left || here.right > card.right);
            }).map(text => text.textContent)"""
        )
        assert outside == [], width


def test_without_scripts_it_is_one_long_page(page_of: Open) -> None:
    one = page_of(java_script_enabled=False)
    assert seen(one, ".view") == list(VIEWS)
    assert set(seen(one, "#speed .setting")) == {"1", "2"}
    assert not one.page.locator("#theme").is_visible()
    assert not one.page.locator("#setting").is_visible()


def test_hostile_records_run_nothing(page_of: Open) -> None:
    one = page_of("hostile")
    said: list[str] = []

    def answer(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    one.page.on("dialog", answer)
    one.page.reload()
    assert seen(one, ".view") == ["summary"]
    assert one.page.evaluate("document.images.length + document.scripts.length") == 1
    assert said == []
