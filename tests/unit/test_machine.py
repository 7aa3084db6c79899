"""Threads and memory that a container allows, on made-up trees of control groups."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sdengine
from sdengine.cli.main import main
from sdengine.machine import Processors, free_memory_bytes, usable_processors


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def proc_of(
    folder: Path, groups: str, mounts: list[tuple[str, str, str]], files: dict[str, str]
) -> Path:
    """Make a process's folder.

    Args:
        folder: where.
        groups: its file `cgroup`.
        mounts: kind, root and place of each, and for version 1 the controllers after a colon.
        files: what the groups say.
    """
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    lines = []
    for kind, root, place in mounts:
        kind, _, controllers = kind.partition(":")
        shown = str(folder / place).replace(" ", "\\040")
        options = f"rw,{controllers}" if controllers else "rw"
        lines.append(f"33 24 0:29 {root} {shown} rw,nosuid shared:9 - {kind} none {options}\n")
    (proc / "mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return proc


V2 = [("cgroup2", "/", "sys/fs cgroup")]
V1 = [("cgroup:cpuset", "/", "cpuset"), ("cgroup:cpu,cpuacct", "/", "cpu")]
CASES: dict[str, tuple[str, list[tuple[str, str, str]], dict[str, str], float | None]] = {
    "version 2": ("0::/a/b", V2, {"sys/fs cgroup/a/b/cpu.max": "250000 100000"}, 2.5),
    "without a limit": ("0::/a", V2, {"sys/fs cgroup/a/cpu.max": "max 100000"}, None),
    "a parent's": (
        "0::/a/b/c",
        V2,
        {
            "sys/fs cgroup/a/cpu.max": "150000 100000",
            "sys/fs cgroup/a/b/c/cpu.max": "400000 100000",
        },
        1.5,
    ),
    "the namespace's own top": ("0::/", V2, {"sys/fs cgroup/cpu.max": "100000 100000"}, 1.0),
    "outside the namespace": ("0::/../x", V2, {"sys/fs cgroup/cpu.max": "100000 50000"}, 2.0),
    "version 1": (
        "5:cpuset:/other\n4:cpu,cpuacct:/docker/1f",
        V1,
        {"cpu/docker/1f/cpu.cfs_quota_us": "50000", "cpu/docker/1f/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    "version 1 without a limit": (
        "4:cpu,cpuacct:/",
        V1,
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None,
    ),
    "version 1, a part mounted": (
        "4:cpu,cpuacct:/docker/1f/x",
        [("cgroup:cpu,cpuacct", "/docker/1f", "cpu")],
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    "version 1, another part mounted": (
        "4:cpu,cpuacct:/kubepods/2a",
        [("cgroup:cpu,cpuacct", "/docker/1f", "cpu")],
        {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
        3.0,
    ),
    "both versions": (
        "4:cpu,cpuacct:/a\n0::/b",
        [*V1, *V2],
        {
            "cpu/a/cpu.cfs_quota_us": "600000",
            "cpu/a/cpu.cfs_period_us": "100000",
            "sys/fs cgroup/b/cpu.max": "max 100000",
        },
        6.0,
    ),
    "nonsense": ("what\n0::\n::::", [*V2, ("cgroup2", "", "")], {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_of_a_control_group(tmp_path: Path, case: str) -> None:
    groups, mounts, files, quota = CASES[case]
    found = usable_processors(proc_of(tmp_path, groups, mounts, files))
    assert found == Processors(8, quota)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "limit"),
    [
        ("0::/a/b", V2, {"sys/fs cgroup/a/memory.max": "4096"}, 4096),
        ("0::/a", V2, {"sys/fs cgroup/a/memory.max": "max"}, None),
        (
            "7:memory:/x",
            [("cgroup:memory", "/", "memory")],
            {"memory/x/memory.limit_in_bytes": "8192"},
            8192,
        ),
    ],
)
def test_the_memory_limit_of_a_control_group(
    tmp_path: Path,
    groups: str,
    mounts: list[tuple[str, str, str]],
    files: dict[str, str],
    limit: int | None,
) -> None:
    found = free_memory_bytes(proc_of(tmp_path, groups, mounts, files))
    assert found == limit if limit else found > 1 << 20


def test_without_control_groups(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == Processors(8)


@pytest.mark.parametrize(
    ("quota", "threads", "by_quota"),
    [(None, 8, None), (0.5, 1, 1), (2.0, 2, 2), (2.5, 3, 3), (7.5, 8, None), (64.0, 8, None)],
)
def test_threads_are_as_many_as_affinity_and_quota_allow(
    quota: float | None, threads: int, by_quota: int | None
) -> None:
    processors = Processors(8, quota)
    assert (processors.threads, processors.threads_by_quota) == (threads, by_quota)


def test_a_session_takes_them_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("native.backend", "native.packing"):
        name = f"sdengine.backends.{module}.usable_processors"
        monkeypatch.setattr(name, lambda: Processors(8, 2.5))
    with sdengine.load("demo") as engine:
        session: Any = engine.session
        assert session._threads == 3
    with sdengine.load("demo", threads=5) as engine:
        session = engine.session
        assert session._threads == 5


def test_openvino_is_told_of_a_quota_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdengine.backends.openvino import OpenVinoBackend

    monkeypatch.setattr(OpenVinoBackend, "resolve", lambda self, precision: "fp32")
    for quota, threads in ((None, None), (2.5, 3), (20.0, None)):
        monkeypatch.setattr(
            "sdengine.backends.openvino.usable_processors",
            lambda quota=quota: Processors(8, quota),
        )
        session: Any = OpenVinoBackend().open(SimpleNamespace())  # type: ignore[arg-type]
        assert session._threads == threads


def test_doctor_shows_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sdengine.cli.checks.usable_processors", lambda: Processors(8, 2.5))
    main(["doctor"])
    line = next(line for line in capsys.readouterr().out.splitlines() if " threads " in line)
    assert "8 processors may be used, 2.5 by the control group's quota: 3 by default" in line
