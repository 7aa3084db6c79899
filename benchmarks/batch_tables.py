"""Batch tables: pictures a minute in one process and on Ray, and what kills left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdengine.benchmarks.markdown import table


def batches(record: Mapping[str, Any]) -> str:
    """Return the pace of a batch in one process and on Ray, and what became of a killed one."""
    speed, kills = record["speed"], record["kills"]
    rows = [
        [
            name,
            *(
                "{median:.0f} ({p10:.0f} to {p90:.0f})".format(**figures[one])
                for one in ("pictures_a_minute", "seconds")
            ),
        ]
        for name, figures in speed["sides"].items()
    ]
    loads = speed["load_average_before_each"]
    return "\n\n".join(
        [
            f"{speed['rows']} rows of the demo model, {record['steps']} steps, "
            f"{record['machine']['cores']} processors, Ray {record['versions']['ray']}; the sides "
            f"take turns. Medians, with 10th and 90th percentile; rounds: "
            f"{next(iter(speed['sides'].values()))['seconds']['n']}. The pace is that from the "
            "first file to the last; seconds count loading, and starting Ray, too. Load average "
            f"before each run: {min(loads):.1f} to {max(loads):.1f}.",
            table(("", "pictures a minute", "seconds of the whole batch"), rows),
            f"Of {kills['rows']} rows on Ray, one of {kills['actors']} actors was killed by "
            f"SIGKILL at {kills['pictures_when_actor_was_killed']} pictures, and the driver at "
            f"{kills['pictures_when_driver_was_killed']}. The same command found "
            f"{kills['kept_by_the_second_run']} and made {kills['made_by_the_second_run']}; all "
            f"{kills['equal_files']} files, the manifest among them, have the bytes of those of "
            "one process.",
        ]
    )
