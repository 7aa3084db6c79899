"""The page of the suite's records: what stands in it, and what no record can put into it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
import typer
from support import suite_records
from support.suite_records import (
    EVIL,
    NOT_RUN,
    OUT_OF_MEMORY,
    Json,
    comparison,
    growth,
    hostile,
    picture_name,
    profile,
    setting,
    spread,
    write_pictures,
    write_records,
)

from sdengine.benchmarks.suite.page import figures
from sdengine.benchmarks.suite.page.gathered import Gathered, Sourced, gather
from sdengine.benchmarks.suite.page.ink import drawing
from sdengine.benchmarks.suite.page.line_plots import _apart
from sdengine.benchmarks.suite.page.markup import Table, plain, table
from sdengine.benchmarks.suite.page.page import render
from sdengine.benchmarks.suite.page.pictures import parity
from sdengine.benchmarks.suite.page.speed import ratio_card
from sdengine.benchmarks.suite.setting import Setting
from sdengine.benchmarks.suite.suite_records import read
from sdengine.cli.bench_report import report
from sdengine.errors import ConfigError, OutputError

# Elements without an end.
_EMPTY = {"meta", "link", "img"}


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def page_of(path: Path, *records: Json) -> str:
    """Return the page of records that are written and read again."""
    file = write_records(path / "records.jsonl", records)
    return render([Sourced(record, path) for record in read([file])])


def gathered_of(path: Path, *records: Json) -> Gathered:
    """Return records, written and read again, as a page has them."""
    file = write_records(path / "records.jsonl", records)
    return gather([Sourced(record, path) for record in read([file])])


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything in it."""
    folder = tmp_path_factory.mktemp("evening")
    write_pictures(folder, ["native bf16", "eager fp32"])
    (folder / picture_name("native int8")).write_bytes(b"no picture")
    return page_of(folder, *suite_records.evening())


def test_every_view_has_its_figures(evening: str) -> None:
    text = Page(evening).text
    for words in (
        "U-Net step", "Text encoder", "VAE decoder", "Outside networks", "End to end",  # stages
        "Pictures per minute", "End to end: speed-up",
        "Peak memory of the process", "Peak memory of the control group", "GPU memory",
        "Time to the first picture", "pack, compile or capture",
        "End to end over threads", "Time over pixels of a picture", "∝ n^1.07", "1.07 (1.05",
        "Roofline of the U-Net step", "bf16 2.9 TFLOP/s, int16 2.88 TFLOP/s", "memory 84 GB/s",
        "Roofline of the operations", "winograd", "By level", "Slowest operations",
        "Errors", "41.2 dB", "Measured among noise", "other programs took 34 %",
        "out of memory: it was ended with 61 GB", "failed: RuntimeError: the pictures differ",
        "pip install openvino-genai openvino-tokenizers diffusers transformers",
        "sdengine bench --arch sd15 --resolution 512 --json r.jsonl",
        "sdengine profile sd15-native", "4th generation, @ 2.40GHz", "avx512_amx", "0\u20133, 6",
        "2026-11-30 21:04:10 UTC", "commit 96218dd0aa", "H200",
    ):  # fmt: skip
        assert words in text, words


def test_a_ratio_is_shown_with_its_interval_and_without_where_there_is_none(tmp_path: Path) -> None:
    for runs in (5, 1):
        gathered = gathered_of(tmp_path, comparison(runs=runs))
        with drawing():
            card = ratio_card(gathered, gathered.settings[0], "end_to_end", "r")
        text = Page(card).text
        assert "4.42\u00d7" in text and ("4.35\u20134.50" in text) == (runs > 1)


def test_scaled_times_say_so(evening: str) -> None:
    text = Page(evening).text
    assert "≈: scaled to 20 steps: stable-diffusion.cpp q8_0 from 2." in text
    assert re.search(r"≈ \d+ s", text)


def test_every_figure_has_a_title_a_description_and_a_table(evening: str) -> None:
    assert evening.count("<svg") > 30
    drawn = re.findall(
        r'<svg [^>]*aria-labelledby="([\w-]+)-t \1-d"><title id="\1-t">.+?</title>'
        r'<desc id="\1-d">.+?</desc>',
        evening,
    )
    assert len(drawn) == len(set(drawn)) == evening.count("<svg")
    cards = re.findall(r'<figure class="card.*?</figure>', evening)
    assert cards and all("<svg" in card and "<details>" in card for card in cards)
    ids = re.findall(r' id="([^"]+)"', evening)
    assert len(ids) == len(set(ids))


def test_figures_take_their_colours_from_the_style_sheet(evening: str) -> None:
    style = evening[evening.index("<style>") : evening.index("</style>")]
    body = evening[evening.index("<body>") :]
    used = set(re.findall(r"\b[fks]-[a-z]+\d?\b", " ".join(re.findall(r'class="([^"]*)"', body))))
    assert {"f-ours0", "f-peer0", "k-line", "f-text"} <= used
    assert all(f".{name} " in style for name in used)
    assert "#" not in "".join(re.findall(r'(?:fill|stroke)="([^"]*)"', body))
    assert " style=" not in body  # which the policy forbids


def test_nothing_is_fetched_and_only_what_is_known_runs(evening: str) -> None:
    page = Page(evening)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:"))
    assert "//" not in re.sub(r'src="data:[^"]*"', "", evening)
    policy = next(
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", evening, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_hostile_record_puts_no_markup_into_the_page(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_pictures(tmp_path, ["native bf16"])
    (tmp_path / picture_name("native bf16")).rename(tmp_path / "secret.png")
    html = page_of(tmp_path / "in", *hostile())
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert "img" not in {tag for tag, _ in page.tags}  # not even one of another folder
    assert "\0" not in html and "\u202e" not in html
    assert "\\x00\\u202e" in page.text  # said, in place of done
    assert "$x^2$" in page.text


def test_a_picture_is_read_only_beside_its_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_pictures(tmp_path, ["native bf16"])
    name = picture_name("native bf16")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / name)
    for given in (f"../{name}", str(tmp_path / name), "link.png", "..", "", "no.png", "a\0b"):
        record = comparison(None)
        record["sides"]["native bf16"]["picture"] = given
        (together,) = gathered_of(tmp_path / "in", record).settings
        assert "<img" not in parity(together), given
    record["sides"]["native bf16"]["picture"] = name
    (together,) = gathered_of(tmp_path, record).settings
    assert "<img" in parity(together)


def test_pictures_stand_beside_their_difference(evening: str) -> None:
    alternatives = re.findall(r'<img [^>]*alt="([^"]*)"', evening)
    assert alternatives == [
        "Picture of eager fp32",
        "Picture of native bf16",
        "Difference of native bf16 to eager fp32",
    ]  # and none of the file that is no picture


def test_the_same_records_make_the_same_page_whatever_the_user_has_set(tmp_path: Path) -> None:
    records = [comparison(ours=["native bf16"]), growth(), profile(5)]
    first = page_of(tmp_path, *records)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert page_of(tmp_path, *records) == first


def test_a_page_without_pictures_stays_small(evening: str) -> None:
    bare = re.sub(r'src="data:[^"]*"', "", evening)
    # Of three settings, two growths and a profile.
    assert len(bare.encode()) < 300_000


def test_of_a_peer_that_was_measured_twice_the_last_counts(tmp_path: Path) -> None:
    old, new = comparison(), comparison()
    old["sides"]["eager fp32"]["stages_ms"]["unet_step"] = spread(987_000.0)
    records = [old, new, comparison("openvino bf16")]
    (together,) = gathered_of(tmp_path, *records).settings
    assert [record["peer"] for record in together.records] == ["eager fp32", "openvino bf16"]
    assert together.sides["eager fp32"]["stages_ms"]["unet_step"]["median"] < 6000
    assert list(together.sides)[:2] == list(together.ours) == ["native bf16", "native int8"]


def test_systems_have_one_colour_in_all_settings(tmp_path: Path) -> None:
    records = [
        comparison("eager fp32"),
        comparison("openvino bf16", changes={"resolution": 256}),
        comparison("own bf16", peer_side=NOT_RUN),
        comparison("eager bf16", peer_side=NOT_RUN),
    ]
    gathered = gathered_of(tmp_path, *records)
    assert gathered.ink("native bf16") == gathered.ink("native int8") == "ours0"
    assert gathered.strength("native bf16") > gathered.strength("native int8")
    assert gathered.ink("eager fp32") == gathered.ink("eager bf16") == "peer0"
    assert len({gathered.ink(f"{name} bf16") for name in ("eager", "openvino", "own")}) == 3


def test_settings_that_differ_in_one_field_make_a_line(tmp_path: Path) -> None:
    records = [comparison(changes={"threads": threads}) for threads in (4, 1, 2)]
    records += [comparison(changes={"threads": 2, "batch_size": 4})]
    records += [comparison(changes={"threads": None, "resolution": 768})]
    found = list(gathered_of(tmp_path, *records).scalings())
    assert [(one.axis, list(one.settings)) for one in found] == [
        ("batch_size", [1, 4]),
        ("threads", [1, 2, 4]),
    ]
    assert [x for x, _ in found[1].points("unet_step")["eager fp32"]] == [1, 2, 4]


def test_settings_of_two_machines_are_told_apart(tmp_path: Path) -> None:
    other, gpu, alone = comparison(), comparison(), comparison(changes={"resolution": 768})
    other["machine"] = {**other["machine"], "processor": "Another (family 25, model 1)"}
    gpu["gpu"] = {"name": "A GPU"}
    records = [comparison(), other, gpu, alone]
    labels = [one.label for one in gathered_of(tmp_path, *records).settings]
    first = comparison()["machine"]["processor"]
    ends = [f", {name}" for name in (first, "Another (family 25, model 1)", f"A GPU, {first}")]
    assert [label.removeprefix(labels[0].removesuffix(ends[0])) for label in labels[:3]] == ends
    assert first not in labels[3]
    wide = comparison(changes={"resolution": 768})
    wide["machine"] = other["machine"]
    scalings = gathered_of(tmp_path, *records, wide).scalings()
    for one, end in zip(scalings, ends[:2], strict=True):
        assert one.label.endswith(end)


@pytest.mark.parametrize("kind", ["growth", "profile"])
def test_a_page_of_one_kind_alone(tmp_path: Path, kind: str) -> None:
    text = Page(page_of(tmp_path, growth() if kind == "growth" else profile(3))).text
    assert ("Time over pixels" in text) == (kind == "growth")
    assert ("Slowest operations" in text) == (kind == "profile")


def test_records_without_what_may_be_missing(tmp_path: Path) -> None:
    bare = comparison(None, roofline=None, changes={"device": "cuda", "threads": None})
    bare["sides"]["native bf16"] = {"state": "measured"}
    bare["sides"]["native int8"] = OUT_OF_MEMORY
    zero = comparison(ratios={"native bf16": {"unet_step": {"ratio": 0, "low": 0, "high": None}}})
    zero["sides"]["eager fp32"]["stages_ms"] = {"unet_step": spread(0.0, 1)}
    empty = growth(points=[], fits={})
    halted = profile(2, roofline=None, steps=[])
    text = Page(page_of(tmp_path, bare, zero, empty, halted)).text
    assert "No side told its memory or its start." in text


def _damaged(**changes: object) -> Json:
    return {**comparison(), **changes}


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{", "schema 3"),
        (json.dumps({"schema": 1, "kind": "comparison"}), "schema 3"),
        (json.dumps(_damaged(kind="else")), "kind"),
        (json.dumps({"schema": 3}), "kind"),
        (json.dumps(_damaged(label=7)), "label"),
        (json.dumps(_damaged(ours=["no such side"])), "'no such side'"),
        (json.dumps(_damaged(peer="none")), "'none'"),
        (json.dumps(_damaged(setting=setting(resolution="512"))), "resolution"),
        (json.dumps(_damaged(noise={"is_noisy": True})), "noise"),
        (json.dumps(comparison()).replace("41.2", "NaN"), "image_psnr_db"),
        (json.dumps(comparison()).replace('"n": 5', '"n": -5'), "stages_ms"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, word: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(f"{json.dumps(comparison())}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read([file])
    assert f"{file}:2" in str(caught.value) and word in str(caught.value)


def test_a_setting_of_a_record_has_the_fields_of_a_setting() -> None:
    assert set(setting()) == set(Setting.__dataclass_fields__)


def command(*arguments: object) -> None:
    app = typer.Typer()
    app.command()(report)
    app([str(argument) for argument in arguments], standalone_mode=False)


def test_the_command_writes_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_records(tmp_path / "one.jsonl", [profile(2)])
    two = write_records(tmp_path / "two.jsonl", [growth()])
    out = tmp_path / "page.html"
    command(one, two, "-o", out, "--title", "A <b> title")
    assert capsys.readouterr().out == f"{out}\n"
    html = out.read_text(encoding="utf-8")
    assert "<title>A &lt;b&gt; title</title>" in html and "Time over pixels" in html
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl", "two.jsonl", "page.html"}
    with pytest.raises(ConfigError, match="--overwrite"):
        command(two, "-o", out)
    assert out.read_text(encoding="utf-8") == html
    command(two, "-o", out, "--overwrite")
    assert "A &lt;b&gt; title" not in out.read_text(encoding="utf-8")


def test_the_command_refuses(tmp_path: Path) -> None:
    file = write_records(tmp_path / "r.jsonl", [growth()])
    empty = write_records(tmp_path / "e.jsonl", [])
    for arguments, word in (
        ((file, "-o", tmp_path / "page.pdf"), "output"),
        ((file, "-o", tmp_path / "no" / "page.html"), "folder that exists"),
        ((tmp_path / "no.jsonl", "-o", tmp_path / "p.html"), "no.jsonl cannot be read"),
        ((empty, "-o", tmp_path / "p.html"), "no records"),
    ):
        with pytest.raises(ConfigError, match=word):
            command(*arguments)
    assert not (tmp_path / "p.html").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_records(tmp_path / "r.jsonl", [growth()])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        command(file, "-o", tmp_path / "p.html")
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_figures_have_three_digits_and_a_unit() -> None:
    assert figures.milliseconds(0.0421) == "42.1 µs"
    assert figures.milliseconds(999.4) == "999 ms"
    assert figures.milliseconds(899_999) == "900 s"
    assert figures.milliseconds(960_000) == "16.0 min"
    assert figures.milliseconds(40, most=5000) == "0.0400 s"
    assert figures.milliseconds(0) == "0 µs"
    assert figures.size(3_420_000_000) == "3.42 GB"
    assert figures.rate(2.9e12, "FLOP") == "2.9 TFLOP/s"
    assert figures.times(1.835) == "1.83\u00d7"
    assert figures.decibels(100.0) == "equal"
    assert figures.tick_of_time(20_000) == "20 s"


def test_names_are_moved_apart_and_stay_inside() -> None:
    assert _apart([5, 6, 50], 10, 0, 100) == [5, 15, 50]
    assert _apart([97, 98, 99], 10, 0, 100) == [80, 90, 100]
    assert _apart([], 10, 0, 100) == []


def test_text_is_shortened_and_shown_as_what_it_is() -> None:
    assert plain("a\x1b[31mb") == "a\\x1b[31mb"
    assert len(plain("x" * 10_000)) == 2000
    assert EVIL not in table(Table((EVIL, "b"), [(EVIL, EVIL), (EVIL,)]), EVIL)
