"""IP-Adapters of requests: their fields, what does not go together, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ip_adapters import IDENTITY, PROJECTION, make_ip_adapter, picture, save_ip_adapter

from sdengine import IPAdapter, Request
from sdengine.errors import ConfigError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ip_adapter(tmp_path_factory.mktemp("x") / "a.bin", make_ip_adapter("tiny"))


def test_blocks_in_both_spellings(file: Path) -> None:
    def blocks(given: Any) -> Any:
        return IPAdapter(file, picture(), blocks=given).blocks

    diffusers = {"down": {"block_2": [0.0, 1.0]}, "mid": 0.5, "up": {"block_0": 2, "block_1": [3]}}
    plain = {
        "down_blocks.2.attentions.0": 0, "down_blocks.2.attentions.1": 1, "mid_block": 0.5,
        "up_blocks.0": 2, "up_blocks.1": 3,
    }  # fmt: skip
    assert blocks(diffusers) == blocks(plain) == blocks(blocks(plain))
    assert blocks({"up": 0.5}) == (("up_blocks", 0.5),)
    for odd in (
        {}, {"side": 1}, {"up": [1, 2]}, {"up": {"block_x": 1}}, {"mid": {"block_0": 1}},
        {"up": {"block_0": 11}}, {"up_blocks.0.resnets.0": 1}, {"up": "1"}, [("up", 1)], {1: 1}, 3,
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"ip_adapter\.blocks"):
            blocks(odd)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give either image or embeds"),
        ({"image": picture(), "embeds": np.zeros(PROJECTION, np.float32)}, "give either"),
        ({"image": picture(), "scale": 11}, r"ip_adapter\.scale: 11"),
        ({"image": picture(), "start": 0.5, "end": 0.5}, r"start: 0.5 .* less than end"),
        ({"image": [picture()] * 17}, "17 pictures"),
        ({"image": "none.png"}, r"ip_adapter\.image: 'none.png' cannot be read"),
        ({"embeds": np.zeros(7, np.float32)}, r"ip_adapter\.embeds: .*\[7\].* expected \[24\]"),
    ],
)
def test_what_does_not_fit_is_refused(file: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        IPAdapter(file, **fields)


def test_names_of_fields() -> None:
    with pytest.raises(ConfigError, match=r"ip_adapter.scales: .*Did you mean scale\?"):
        Request("a", ip_adapters=[{"scales": 1}])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ip_adapter.file: it is missing"):
        Request("a", ip_adapters={"scale": 1})  # type: ignore[arg-type]
    wrong: list[Any] = ["a.bin", [1], [{}] * 9]
    for odd in wrong:
        with pytest.raises(ConfigError, match="ip_adapter"):
            Request("a", ip_adapters=odd)


def test_faces_are_given_as_embeddings(tmp_path: Path) -> None:
    path = save_ip_adapter(tmp_path / "a.bin", make_ip_adapter("tiny", "face_id"))
    assert IPAdapter(path, embeds=np.zeros((2, 1, 1, IDENTITY), np.float32)).is_given
    with pytest.raises(ConfigError, match="FaceID adapter reads no picture; give embeds, the 20"):
        IPAdapter(path, picture())


def test_json_has_records(file: Path) -> None:
    adapters = [
        IPAdapter(file, [picture(), picture(1)], scale=0.5, blocks={"up": 1}),
        IPAdapter(file, embeds=np.zeros((2, 1, PROJECTION), np.float32), start=0.25),
    ]
    request = Request("a", ip_adapters=adapters)  # type: ignore[arg-type]
    again = Request.from_json(request.to_json())
    assert again == request and hash(again) == hash(request)
    assert not again.ip_adapters[0].is_given
    assert again.to_json() == request.to_json()
    assert "ip_adapters" not in Request("a").to_json()
    content = json.loads(request.to_json())
    assert content["ip_adapters"][0]["blocks"] == {"up_blocks": 1.0}
    for change in (
        {"file": str(file)},
        {"image": "a.png"},
        {"image": [str(file)]},
        {"embeds": "x"},
    ):
        odd = {**content, "ip_adapters": [{**content["ip_adapters"][0], **change}]}
        with pytest.raises(ConfigError, match="ip_adapter"):
            Request.from_json(json.dumps(odd))
