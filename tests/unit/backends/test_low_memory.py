"""Networks that are freed as soon as a request is done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdengine
from sdengine.errors import ConfigError


def loaded(engine: sdengine.Engine) -> set[str]:
    return {name for name, shapes in engine._networks._loaded.items() if shapes}


def test_only_what_is_needed_is_loaded() -> None:
    options: dict[str, Any] = {"steps": 3, "seed": 5, "batch_size": 2}
    with sdengine.load("demo", precision="fp32", threads=1) as engine:
        expected = engine.generate("a red circle", **options)
        assert loaded(engine) == {"text_encoder", "unet", "vae_decoder"}
    with sdengine.load("demo", precision="fp32", threads=1, low_memory=True) as engine:
        for _ in range(2):
            seen = []
            for step in engine.stream("a red circle", **options):
                if step.result is None:
                    seen.append(loaded(engine))
            assert step.result is not None
            for ours, theirs in zip(step.result.arrays, expected.arrays, strict=True):
                assert np.array_equal(ours, theirs)
            assert seen == [{"unet"}, {"unet"}]
            assert loaded(engine) == set()


def test_must_be_a_yes_or_no() -> None:
    with pytest.raises(ConfigError, match="low_memory: 1 is not accepted"):
        sdengine.load("demo", low_memory=1)  # type: ignore[arg-type]


def test_the_command_makes_the_same_picture(tmp_path: Path) -> None:
    from sdengine.cli.main import main

    for name, options in (("a.png", ()), ("b.png", ("--low-memory",))):
        arguments = ("a red circle", "--steps", "2", "--seed", "3", "-o", str(tmp_path / name))
        assert main(["generate", *arguments, *options]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
