"""Pictures of fixed prompts and seeds, and tables of how far they are from others of the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import sdengine
from sdengine.benchmarks.measures import psnr

RESULTS = Path(__file__).parent / "results"
PROMPTS = (
    "a large red circle on a blue background",
    "a small green star above a yellow ring, black background",
    "a pink heart in the top left corner on a white background",
    "a cyan cross to the right of a large orange diamond on a purple background",
)
GUIDANCE_SCALE = 3.0
Pictures = list[NDArray[np.uint8]]
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


def picture_table(table: Mapping[str, Mapping[Column, Sequence[float]]], heading: str) -> str:
    """Return the lowest and the median PSNR of each cell; the heading says of what."""
    columns = list(next(iter(table.values())))
    lines = [
        f"| {heading}, dB: lowest (median) | {' | '.join(map(str, columns))} |",
        "|---|" + "---:|" * len(columns),
    ]
    for row, values in table.items():
        cells = [f"{min(v):.1f} ({np.median(v):.1f})" for v in values.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finish(record: Mapping[str, Any], path: Path, shown: str, missed: Sequence[str]) -> int:
    """Write the record, print the table and what misses the requirement, and return the status."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(shown)
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0
