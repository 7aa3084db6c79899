"""View of conditions: machines and versions, noise, what was not run and why, and the commands."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sdengine.benchmarks.suite.page.figures import percent, size, span
from sdengine.benchmarks.suite.page.gathered import Gathered, Together
from sdengine.benchmarks.suite.page.markup import Table, code, escaped, paragraph, table
from sdengine.benchmarks.suite.page.speed import state_of
from sdengine.benchmarks.suite.suite_records import MEASURED, Noise, Record

_MACHINE = {
    "cores": "Cores",
    "isa": "Instructions",
    "clock_mhz": "Clock",
    "governor": "Governor",
    "affinity": "Processors used",
    "memory_bytes": "Memory",
    "load_average": "Load before",
    "system": "System",
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
_NOISE = {
    "others_percent": "other programs",
    "spread_percent": "spread of requests",
    "drift_percent": "drift",
}


def noises(one: Together) -> str:
    """Return a box of a setting's noise warnings; "" where it was quiet."""
    said = [
        f"Beside {record['peer'] or record['ours'][0]}: {why}"
        for record in one.records
        if record["noise"]["is_noisy"] and record["ours"]
        for why in record["noise"]["why"] or ["noisy"]
    ]
    if not said:
        return ""
    items = "".join(f"<li>{escaped(line)}</li>" for line in dict.fromkeys(said))
    return (
        '<aside class="warning"><strong>Measured among noise</strong>: small differences mean '
        f"nothing here.<ul>{items}</ul></aside>"
    )


def not_run(one: Together) -> str:
    """Return sides that were not measured, why, and what installs what is lacking."""
    items = ""
    for label, side in one.sides.items():
        if side["state"] != MEASURED:
            why = f": {side['why']}" if side.get("why") else ""
            install = code(side["install"]) if side.get("install") else ""
            said = f"<strong>{escaped(label)}</strong> {escaped(state_of(side) + why)}"
            items += f"<li>{said}{install}</li>"
    return f'<h4>Not measured</h4><ul class="missing">{items}</ul>' if items else ""


def conditions(one: Together) -> str:
    """Return under which conditions a setting was measured."""
    commands = dict.fromkeys(record["command"] for record in one.records)
    rows = [
        [
            record["peer"] or "ours alone",
            *_noise(record["noise"]),
            str(record["runs"]),
            _when(record["time"]),
        ]
        for record in one.records
    ]
    heads = ("Beside", "", *_NOISE.values(), "Runs", "Time")
    return (
        f"{not_run(one)}<h4>Command</h4>{''.join(map(code, commands))}"
        f"<h4>Noise</h4>{table(Table(heads, rows), 'Noise')}"
    )


def _noise(noise: Noise) -> list[str]:
    found: Mapping[str, Any] = noise
    shares = [percent(found[name]) if name in found else "" for name in _NOISE]
    return ["noisy" if noise["is_noisy"] else "quiet", *shares]


def environment(gathered: Gathered) -> str:
    """Return every machine and its software, and the commands of growths and profiles."""
    machines: dict[str, list[Record]] = {}
    for record in gathered.all_records:
        machine, gpu = record["machine"], _gpu(record)
        key = json.dumps([machine.get("processor"), machine.get("cores"), gpu], sort_keys=True)
        machines.setdefault(key, []).append(record)
    html = "".join(_machine(records) for records in machines.values())
    others = dict.fromkeys(one["command"] for one in (*gathered.growths, *gathered.profiles))
    if others:
        html += f"<h4>Commands of growth and profiles</h4>{''.join(map(code, others))}"
    return html


def _machine(records: list[Record]) -> str:
    """Return what is known of one machine, of all its records together."""
    rows = [["Measured", _span([record["time"] for record in records])]]
    for key, name in _MACHINE.items():
        values = dict.fromkeys(
            text for record in records if (text := _shown(key, record["machine"].get(key)))
        )
        if values:
            many = len(values) > 3
            rows.append([name, ", then ".join([*values][: 1 if many else 3]) + (", …" * many)])
    gpu = _gpu(records[0])
    rows += [[f"GPU: {key}", _shown(key, value)] for key, value in gpu.items()]
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in record["versions"].items():
            if version is not None:
                versions.setdefault(name, {})[version] = None
    rows += [[name, ", ".join(found)] for name, found in versions.items()]
    title = str(records[0]["machine"].get("processor") or "Machine")
    return f"<h4>{escaped(title)}</h4>" + table(Table(("", ""), rows), "Environment")


def _gpu(record: Record) -> dict[str, Any]:
    return record.get("gpu", {}) if record["kind"] == "comparison" else {}


def _span(times: list[str]) -> str:
    first, last = _when(min(times)), _when(max(times))
    return first if first == last else f"{first} to {last}"


def _when(time: str) -> str:
    """Return a time of ISO 8601 as people write it."""
    return time.replace("T", " ").replace("+00:00", " UTC") if _TIME.fullmatch(time) else time


def _shown(key: str, value: object) -> str:
    """Return what a record says of a machine, in words."""
    if value is None or value == {}:
        return ""
    if key.endswith("bytes") and isinstance(value, (int, float)):
        return size(value) if abs(value) < 1e30 else str(value)
    if key == "clock_mhz" and isinstance(value, dict):
        return " of ".join(f"{value[name]} MHz" for name in ("now", "max") if value.get(name))
    if key == "affinity" and isinstance(value, list):
        return _ranges([one for one in value if isinstance(one, int)])
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _ranges(numbers: list[int]) -> str:
    """Return numbers as 0-3, 8."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(span(f"{a}", f"{b}") for a, b in found)


def lede(gathered: Gathered) -> str:
    """Return what was measured where and when, in a paragraph."""
    records = gathered.all_records
    parts = [
        _counted(len(gathered.settings), "setting"),
        _counted(len(gathered.growths), "growth"),
        _counted(len(gathered.profiles), "profile"),
    ]
    machines = dict.fromkeys(
        str(_gpu(record).get("name") or record["machine"].get("processor") or "")
        for record in records
    )
    days = sorted({record["time"][:10] for record in records})
    commits = dict.fromkeys(str(record["versions"].get("commit") or "") for record in records)
    said = ", ".join(filter(None, parts))
    if where := "; ".join(filter(None, machines)):
        said += f" on {where}"
    said += f". {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")
    if named := ", ".join(filter(None, commits)):
        said += f", commit {named}"
    return paragraph(f"{said}.", "lede")


def _counted(count: int, word: str) -> str:
    """Return "3 settings"; "" of none."""
    return f"{count} {word}{'s' if count > 1 else ''}" if count else ""
