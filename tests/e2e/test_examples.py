"""Every example script runs on the demo bundle and leaves the files that it names."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
from PIL import Image

import sdengine.examples

WRITES = {
    "text_to_image": 4,
    "previews": 6,
    "async_requests": 3,
    "cancel": 0,
    "threads": 8,
    "many_prompts": 3,
    "arrays": 1,
    "saved_requests": 3,
    "from_pictures": 4,
    "variations": 3,
    "codec": 3,
}


def test_every_example_is_tested() -> None:
    assert {module.name for module in pkgutil.iter_modules(sdengine.examples.__path__)} == set(
        WRITES
    )


@pytest.mark.parametrize("name", WRITES)
def test_example(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"sdengine.examples.{name}").main(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == WRITES[name]
    for file in tmp_path.glob("*.png"):
        with Image.open(file) as image:
            assert any(low < high for low, high in image.convert("RGB").getextrema())  # not flat
    assert capsys.readouterr().out
