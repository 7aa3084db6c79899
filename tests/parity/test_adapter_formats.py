"""The benchmark of adapters' formats finds what is applied wrongly, and what is not applied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdengine.benchmarks.adapter_cases import FORMATS, SD1, Format
from sdengine.benchmarks.adapter_formats import PLAIN, Family, failures, measure
from sdengine.benchmarks.adapter_loras import Applied

pytestmark = pytest.mark.slow
ONETRAINER = FORMATS["LoRA, OneTrainer, dotted names"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    made = Family(SD1, tmp_path_factory.mktemp("family"))
    with made.engine:
        yield made


def failed(family: Family, make: Any, title: str = "it") -> list[str]:
    found = measure(family, SD1, {title: Format(make)}, print)
    assert not failures({PLAIN: {SD1: found[PLAIN]}})
    return failures({title: {SD1: found[title]}})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "title", ["embedding, pixels of a PNG", "LoRA, OneTrainer, dotted names", "hypernetwork"]
)
def test_a_format_that_is_applied_passes(family: Family, title: str) -> None:
    assert not failed(family, FORMATS[title].make, title)


@pytest.mark.filterwarnings("ignore")
def test_another_strength_is_found(family: Family) -> None:
    def weaker(pipeline: Any, folder: Path) -> Applied:
        applied = ONETRAINER.make(pipeline, folder)
        ((path, strength),) = applied.request["loras"].items()
        return replace(applied, request={"loras": {path: 0.9 * strength}})

    (line,) = failed(family, weaker)
    assert "below 40 dB" in line


@pytest.mark.filterwarnings("ignore")
def test_a_file_without_effect_is_found(family: Family) -> None:
    """Even where the reference does nothing either."""
    (line,) = failed(family, lambda pipeline, folder: Applied({}))
    assert "no effect" in line
    lines = failed(family, lambda *given: replace(ONETRAINER.make(*given), request={}))
    assert len(lines) == 2
