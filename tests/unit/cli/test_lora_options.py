"""`--lora` takes a path that may hold colons, and up to two strengths behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdengine.cli.lora_options import parse_loras
from sdengine.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, {}),
        (["a.safetensors"], {"a.safetensors": 1.0}),
        (["a.safetensors:0.8", "b.pt:-2"], {"a.safetensors": 0.8, "b.pt": -2.0}),
        (["a.safetensors:0.5:0"], {"a.safetensors": (0.5, 0.0)}),
        (["C:\\loras\\a.safetensors:1.5"], {"C:\\loras\\a.safetensors": 1.5}),
        (["dir:x/a.pt"], {"dir:x/a.pt": 1.0}),
        (["1:2:3:4"], {"1:2": (3.0, 4.0)}),
    ],
)
def test_paths_and_strengths(given: list[str] | None, found: dict[str, Any]) -> None:
    assert parse_loras(given) == found


def test_a_strength_that_is_no_number(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(ConfigError, match=r"^--lora: .*a number, where 'strong' stands"):
        parse_loras([f"{file}:strong"])
    with pytest.raises(ConfigError, match=r"a number, where 'strong' stands"):
        parse_loras([f"{file}:strong:0.5"])


@pytest.mark.parametrize("given", [[""], [":0.5"], ["a.pt", "a.pt:2"]])
def test_what_names_no_file_or_one_twice(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="--lora"):
        parse_loras(given)
