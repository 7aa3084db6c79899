"""Pictures of a folder: how they are found, what is written of them, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tuning import pictures

from sdengine.errors import ConfigError
from sdengine.training.tuning.buckets import bucket_sizes, nearest_size, place
from sdengine.training.tuning.pictures import (
    TEMPLATES,
    check_captions,
    find_examples,
    read_pixels,
    templates_of,
)


def test_captions_lie_beside_pictures_in_any_folder(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data")
    pictures(data / "more", [(64, 64)], captions=False)
    (data / ".hidden.png").write_bytes(b"")
    found = find_examples(data)
    assert [(e.path.relative_to(data).as_posix(), e.caption) for e in found] == [
        ("0.png", "a red circle, number 0"),
        ("1.png", "a red circle, number 1"),
        ("2.png", "a red circle, number 2"),
        ("more/0.png", None),
    ]
    check_captions(found[:3], ())
    check_captions(found, ("a picture of {name}",))
    with pytest.raises(ConfigError, match=r"0\.png of 4 pictures have no caption.*--template"):
        check_captions(found, ("{caption} by {name}",))


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl", "captions.jsonl"])
def test_tables_name_pictures_captions_and_hints(tmp_path: Path, table: str) -> None:
    data = pictures(tmp_path / "data", [(64, 64)] * 3, captions=False)
    rows = [("0.png", 'one, "two"', "2.png"), ("1.png", "three", "2.png")]
    if table.endswith("csv"):
        lines = [f'{a},"{b.replace(chr(34), chr(34) * 2)}",{c}' for a, b, c in rows]
        text = "\n".join(["file_name,text,conditioning_image", *lines])
    else:
        names = ("file_name", "text", "conditioning_image")
        text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    (data / table).write_text(text)
    found = find_examples(data)
    assert [(e.path.name, e.caption, e.hint and e.hint.name) for e in found] == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"file_name": "../out.png"}', r"row 1: '\.\./out\.png' is no file in"),
        ('{"file_name": "/etc/passwd"}', "is no file in"),
        ('{"file_name": "0.txt"}', "is no picture"),
        ('{"file_name": "absent.png"}', "is no file in"),
        ('{"text": "a"}', "has no file_name"),
        ("[]", "row 1: it is no JSON object"),
        ('{"file_name": "0.png"}\n{"file_name": "0.png"}', "row 2: '0.png' is named twice"),
        ('{"file_name": "0.png", "text": "' + "a" * 70000 + '"}', "more than 65536 bytes"),
        ("[" * 100_000, "is no JSON object"),
        ('{"file_name": "a\\u0000b.png"}', "is no file in"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    pictures(tmp_path / "data", [(64, 64)])
    Image.new("RGB", (8, 8)).save(tmp_path / "out.png")
    (tmp_path / "data" / "metadata.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=said):
        find_examples(tmp_path / "data")


def test_folders_and_captions_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a folder of pictures"):
        find_examples(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="a folder with pictures"):
        find_examples(tmp_path / "empty")
    data = pictures(tmp_path / "data", [(64, 64)])
    (data / "0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"0\.txt.*UTF-8"):
        find_examples(data)


def test_hints_have_the_names_of_their_pictures(tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", [(64, 64)] * 2)
    hints = pictures(tmp_path / "data" / "hints", [(64, 64)] * 2, captions=False)
    assert [(e.path.name, e.hint) for e in find_examples(data, hints)] == [
        ("0.png", hints / "0.png"),
        ("1.png", hints / "1.png"),
    ]
    (hints / "1.png").unlink()
    with pytest.raises(ConfigError, match=r"hints.*has no picture 1\.\*"):
        find_examples(data, hints)


def test_pictures_are_turned_upright_and_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found, _ = read_pixels("data", tmp_path / "turned.png")
    assert found.shape == (16, 8, 3)
    assert (found[:, 4:] == 255).all() and (found[:, :4] == 0).all()
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert (read_pixels("data", tmp_path / "clear.png")[0] == 255).all()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ConfigError, match=r"data.*broken\.png"):
        read_pixels("data", tmp_path / "broken.png")


def test_templates_are_texts_or_words_for_some() -> None:
    assert templates_of(("{name} here", "style")) == ("{name} here", *TEMPLATES["style"])
    for wrong in ("{subject}", "{", "{0}"):
        with pytest.raises(ConfigError, match=r"template.*\{name\} and \{caption\}"):
            templates_of((wrong,))


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (1024, 64), (64, 8)])
def test_buckets_have_about_one_area(resolution: int, step: int) -> None:
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes) > 6
    for width, height in sizes:
        assert width % step == height % step == 0
        assert 0.7 * resolution**2 < width * height <= resolution**2
        assert (height, width) in sizes


def test_a_picture_goes_to_the_bucket_of_its_shape_and_is_hardly_cut() -> None:
    sizes = bucket_sizes(512, 64)
    assert nearest_size(sizes, 3000, 3000) == (512, 512)
    assert nearest_size(sizes, 1920, 1080) == (640, 384)
    assert nearest_size(sizes, 10, 1000)[0] < 300
    rng = np.random.default_rng(0)
    placed = place(rng.integers(0, 256, (100, 300, 3), dtype=np.uint8), (128, 64))
    assert placed.size == (128, 64) and placed.original == (300, 100)
    assert placed.crop == (0, 32)  # 192 wide at that height
