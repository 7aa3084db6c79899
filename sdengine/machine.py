"""Machine: the processors and the memory that this process may use.

A container sees all of its machine, but its control group has a quota of processors' time, and a
limit of memory. Threads beyond the quota use it up early in each period and then all stand still
until the next one.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

OWN_PROCESS = Path("/proc/self")  # what the kernel says of this process


@dataclass(frozen=True)
class Processors:
    """What may be used.

    Args:
        affinity: processors that the process may run on.
        quota: of their time, in processors, or None without a limit.
    """

    affinity: int
    quota: float | None = None

    @property
    def threads(self) -> int:
        """Threads that are worth having."""
        return self.affinity if self.quota is None else min(self.affinity, math.ceil(self.quota))

    @property
    def threads_by_quota(self) -> int | None:
        """The same where the quota is what limits them, else None."""
        return self.threads if self.threads < self.affinity else None


def usable_processors(proc: Path = OWN_PROCESS) -> Processors:
    """Read what this process may use now.

    Args:
        proc: the kernel's folder of the process.

    Source: "Control Group v2" and "CFS Bandwidth Control" of the Linux kernel's documentation,
    `proc_pid_mountinfo(5)`.
    """
    if hasattr(os, "sched_getaffinity"):
        affinity = len(os.sched_getaffinity(0))
    else:
        affinity = os.cpu_count() or 1
    quotas = (_quota(group) for group in control_groups(proc, "cpu"))
    return Processors(affinity, min((q for q in quotas if q is not None), default=None))


def free_memory_bytes(proc: Path = OWN_PROCESS) -> int:
    """Return what this process may take now: what nobody uses, but no more than its group may have.

    Args:
        proc: the kernel's folder of the process.
    """
    limits = (_memory_limit(group) for group in control_groups(proc, "memory"))
    import psutil  # which scripts that only count threads may lack

    free: int = psutil.virtual_memory().available
    return min([free, *(limit for limit in limits if limit is not None)])


def control_groups(proc: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of each group that the process is in, directly or by a parent."""
    mounts = list(_mounts(proc, controller))
    for line in _lines(proc / "cgroup"):  # 4:cpu,cpuacct:/docker/1f2e, or 0::/user.slice
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        for is_v2, root, top in mounts:
            if is_v2 == (not controllers):
                own = _below(top, root, path)
                yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _mounts(proc: Path, controller: str) -> Iterator[tuple[bool, str, Path]]:
    """Yield whether it is of version 2, the group at its root, and the place of each mount."""
    for line in _lines(proc / "mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(), "", "", ""][:3]
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            root, place = (_unescaped(field) for field in (fields.split() + [""] * 5)[3:5])
            yield kind == "cgroup2", root, Path(place)


def _below(top: Path, root: str, path: str) -> Path:
    """Return where a group is; the top itself where the mount does not show its parents."""
    group = PurePosixPath(path)
    if not group.is_relative_to(root) or ".." in group.parts:
        return top
    return top / group.relative_to(root)


def _quota(group: Path) -> float | None:
    """Return a group's own quota, in processors."""
    numbers = [*_lines(group / "cpu.max")[:1]]
    if not numbers:
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = [" ".join(line for name in files for line in _lines(group / name)[:1])]
    with contextlib.suppress(ValueError):  # "max 100000", or no such files
        time, period = map(int, numbers[0].split())
        if time > 0 and period > 0:  # -1 is no limit
            return time / period
    return None


def _memory_limit(group: Path) -> int | None:
    """Return the most that a group's processes may have together, in bytes."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        for line in _lines(group / name)[:1]:
            if line.isdecimal():  # and not "max"
                return int(line)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
