"""Report: every table of what is measured, made from the records in benchmarks/results.

    python benchmarks/report.py            # rewrites the pages
    python benchmarks/report.py --check    # fails where a page differs from its records

The pages are benchmarks/results/README.md, benchmarks/results/kernel-resources.md, the figures
between the two marks of README.md, and benchmarks/results/bench.html. No figure in them is written
by hand. Of the last only its records are checked: how it is drawn depends on matplotlib's release.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdengine.benchmarks import native_tables as native
from sdengine.benchmarks.headline import headline
from sdengine.benchmarks.kernel_resources import page as kernel_page
from sdengine.benchmarks.markdown import put_between, table
from sdengine.benchmarks.records import read_records
from sdengine.benchmarks.report_sections import SECTIONS, Records
from sdengine.benchmarks.suite.page.gathered import Sourced
from sdengine.benchmarks.suite.page.page import digest, render
from sdengine.benchmarks.suite.suite_records import SCHEMA as SUITE_SCHEMA
from sdengine.benchmarks.suite.suite_records import read as read_suite

# The checkout's: an installed copy has no records.
ROOT = Path(__file__).resolve().parents[1]
_OPERATIONS_SCHEMA = 2
_HTML = "bench.html"


def read(results: Path) -> Records:
    """Read all records of a folder of results.

    Raises:
        ConfigError: a file is not one of records.
    """
    comparisons = [
        record
        for path in sorted(results.glob("bench-*.jsonl"))
        for record in read_records(path, SUITE_SCHEMA)
    ]
    return Records(
        prompt_following=[_json(path) for path in sorted(results.glob("prompt-following-*.json"))],
        pictures=_json(results / "pipeline-parity.json"),
        samplers=_json(results / "sampler-parity.json"),
        step_counts=_json(results / "step-counts.json"),
        emphasis=_json(results / "emphasis.json"),
        quantisation=_json(results / "quantisation.json"),
        guidance_interval=_json(results / "guidance-interval.json"),
        adapter_formats=_json(results / "adapter-formats.json"),
        roofline=_json(results / "roofline.json"),
        picture_tasks=_json(results / "picture-tasks.json"),
        demo_variants={
            kind: _json(results / f"demo-variants-{kind}.json")
            for kind in ("inpainting", "edges", "depth", "tiny")
        },
        vae_bands=_json(results / "vae-bands.json"),
        swap=_json(results / "swap.json"),
        training=_json(results / "training.json"),
        batches=_json(results / "batches.json"),
        serving=_json(results / "serving.json")["parts"],
        comparisons=comparisons,
        growths=[
            record
            for path in sorted(results.glob("growth-*.jsonl"))
            for record in read_records(path, SUITE_SCHEMA)
        ],
        networks=read_records(results / "native-networks.jsonl"),
        operations=read_records(results / "native-ops.jsonl", _OPERATIONS_SCHEMA),
        hard_values=_json(results / "native-numerics.json"),
        controls=read_records(path) if (path := results / "controls.jsonl").exists() else [],
        kernels=_json(results / "kernel-resources.json"),
        sheets=[path.name for path in sorted(results.glob("*.png"))],
    )


def report(records: Records) -> str:
    """Return the page of all tables."""
    bodies = {section: text for section in SECTIONS if (text := section.body(records))}
    rows = [
        [f"[{s.title}](#{_anchor(s.title)})", s.measured, s.against, f"`{s.command}`"]
        for s in bodies
    ]
    parts = [
        "<!-- Made by benchmarks/report.py from the records beside it; edit those, not this. -->",
        "# What is measured",
        "Every figure on this page is computed from a record in this folder, by "
        "`python benchmarks/report.py`; a test fails where they differ. Outputs are compared "
        "before anything is timed, and all sides of a comparison run in turns on one machine. "
        "Errors are relative root mean squares unless a table says otherwise. "
        f"{_places(records)}",
        table(["", "measured", "compared with", "made by"], rows, texts=4),
    ]
    for section, body in bodies.items():
        parts += [f"## {section.title}", body, f"    {section.command}"]
    return "\n\n".join(parts) + "\n"


def pages(root: Path) -> dict[Path, str]:
    """Return the text that each page of a checkout should have."""
    results = root / "benchmarks" / "results"
    records = read(results)
    readme = root / "README.md"
    return {
        results / "README.md": report(records),
        results / "kernel-resources.md": kernel_page(records.kernels),
        readme: put_between(readme.read_text(encoding="utf-8"), headline(records)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or with --check return 1 where one differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the checkout")
    options = parser.parse_args(arguments)
    results = options.root / "benchmarks" / "results"
    wanted = dict(pages(options.root))
    if not has_records(results / _HTML, suite_sources(results)):
        wanted[results / _HTML] = "" if options.check else render(suite_sources(results))
    different = 0
    for path, text in wanted.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        different += 1
        if options.check:
            print(f"{path} differs from its records; run benchmarks/report.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 1 if options.check and different else 0


def suite_sources(results: Path) -> list[Sourced]:
    """Return the suite's records in a folder of results, as its page takes them."""
    return [
        Sourced(record, path.parent)
        for kind in ("bench", "growth", "profile")
        for path in sorted(results.glob(f"{kind}-*.jsonl"))
        for record in read_suite([path])
    ]


def has_records(page: Path, sources: Sequence[Sourced]) -> bool:
    """Say whether a page was made of these records."""
    mark = f'<meta name="records" content="{digest(sources)}">'
    return page.exists() and mark in page.read_text(encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _places(records: Records) -> str:
    """Say which machines the records with a processor come from, that of the newest first."""
    timed = [*records.networks, *records.controls, *records.comparisons]
    places = native.by_processor(sorted(timed, key=lambda record: str(record["time"])))
    names = [f"{name} with {found[-1]['machine']['cores']} cores" for name, found in places.items()]
    return f"Processors, that of the newest records first: {'; '.join(names)}."


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())
