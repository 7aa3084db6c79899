"""Pictures of fixed prompts and seeds, and how far they are from others of the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.benchmarks.measures import psnr
from sdengine.benchmarks.records import write_record

PROMPTS = (
    "a large red circle on a blue background",
    "a small green star above a yellow ring, black background",
    "a pink heart in the top left corner on a white background",
    "a cyan cross to the right of a large orange diamond on a purple background",
)
GUIDANCE_SCALE = 3.0
Pictures = list[NDArray[np.uint8]]
Row = TypeVar("Row", bound=str)
Column = TypeVar("Column", str, int)


def pictures(engine: sdengine.Engine, steps: int, side: int, **options: Any) -> Pictures:
    """Return a square picture of each of PROMPTS, picture i with seed i.

    Args:
        engine: what makes them.
        steps: of the sampler.
        side: in pixels.
        options: other fields of the requests.
    """
    return [
        engine.generate(
            prompt,
            steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            seed=seed,
            width=side,
            height=side,
            **options,
        ).arrays[0]
        for seed, prompt in enumerate(PROMPTS)
    ]


def distances(found: Pictures, expected: Pictures) -> list[float]:
    """Return the PSNR of each picture in dB."""
    return [round(psnr(a, e), 1) for a, e in zip(found, expected, strict=True)]


def below_required(
    table: Mapping[str, Mapping[Column, Sequence[float]]],
    required_db: Callable[[Column], float],
    between: str = " ",
) -> list[str]:
    """Return a line for each cell with a picture below what its column requires."""
    return [
        f"{row}{between}{column}: {min(values)} dB, below {required_db(column):g} dB"
        for row, columns in table.items()
        for column, values in columns.items()
        if min(values) < required_db(column)
    ]


def compare(
    found: Mapping[Row, Mapping[Column, Pictures]], expected: Mapping[Column, Pictures]
) -> dict[Row, dict[Column, list[float]]]:
    """Return PSNR in dB by what was found and what was expected, one value a picture."""
    return {
        row: {column: distances(made[column], wanted) for column, wanted in expected.items()}
        for row, made in found.items()
    }


def finish(record: Mapping[str, Any], path: Path, shown: str, missed: Sequence[str]) -> int:
    """Write the record, print the table and what misses the requirement, and return the status."""
    write_record(record, path)
    print(shown)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0
