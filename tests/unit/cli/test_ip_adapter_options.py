"""IP-Adapter options: what each part of the text says, and what goes with a recorded image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ip_adapters import make_ip_adapter, picture, save_ip_adapter

from sdengine import IPAdapter
from sdengine.cli.ip_adapter_options import merged_ip_adapters, other_pictures, parse_ip_adapter
from sdengine.errors import ConfigError
from sdengine.request.ip_adapters import IPAdapters


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a.bin=b.png", {"file": "a.bin", "image": ["b.png"]}),
        ("a=1.safetensors=b=c,d.png:0.6", {
            "file": "a=1.safetensors", "image": ["b=c,d.png"], "scale": 0.6,
        }),
        ("A.BIN=C:b.png:-1,start=0.2,end=0.5", {
            "file": "A.BIN", "image": ["C:b.png"], "scale": -1.0, "start": 0.2, "end": 0.5,
        }),
        ("a.bin=b.png,image=c.png,image=d.png", {
            "file": "a.bin", "image": ["b.png", "c.png", "d.png"],
        }),
        ("a.bin=b.npy:2", {"file": "a.bin", "embeds": "b.npy", "scale": 2.0}),
        ("a.bin=b.png,blocks=up_blocks.0:0.5/mid_block", {
            "file": "a.bin", "image": ["b.png"], "blocks": {"up_blocks.0": 0.5, "mid_block": 1.0},
        }),
    ],
)  # fmt: skip
def test_what_is_said(text: str, found: dict[str, Any]) -> None:
    assert parse_ip_adapter(text) == found


@pytest.mark.parametrize(
    "text",
    ["a.png", "a.bin", "a.bin=", "=b.png", "a.txt=b.png", "a.bin=b.png,mode=x",
     "a.bin=b.png,start=x", "a.bin=b.png,start=0,start=0", "a.bin=b.npy,image=c.png",
     "a.bin=b.png,blocks=up:x"],
)  # fmt: skip
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--ip-adapter: "):
        parse_ip_adapter(text)


def test_a_file_that_is_there_needs_no_scale(tmp_path: Path) -> None:
    (tmp_path / "b:2").write_bytes(b"")
    assert "scale" not in parse_ip_adapter(f"a.bin={tmp_path}/b:2")


def test_what_is_given_goes_with_what_is_recorded(tmp_path: Path) -> None:
    paths = [
        save_ip_adapter(tmp_path / f"{seed}.bin", make_ip_adapter("tiny", seed=seed))
        for seed in (1, 2, 3)
    ]
    known = [IPAdapter(paths[0], picture(), scale=0.3), IPAdapter(paths[1], picture(), end=0.5)]
    records = IPAdapters()("x", known)
    given = {"file": paths[1], "image": [picture()]}
    first, second = IPAdapters()("x", merged_ip_adapters(records, [given]))
    assert first == records[0] and second == records[1]
    assert other_pictures(records, (first, second)) == []
    embeds = {"file": paths[2], "embeds": np.zeros(24, np.float32), "scale": 1.0}
    first, second = IPAdapters()("x", merged_ip_adapters(records, [given, embeds]))
    assert (first.scale, first.image, second.end) == (1.0, (), 0.5)
    lines = other_pictures(records, (first, second))
    assert ["another file" in line for line in lines] == [True, False]
    assert records[0].image[0].sha256 in lines[1]
    added = merged_ip_adapters((), [given])
    assert IPAdapters()("x", added)[0].scale == 1
