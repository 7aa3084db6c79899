"""Watching: what the control group takes, how much energy goes, how the processor is set."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from pathlib import Path
from typing import Any

from sdengine.machine import OWN_PROCESS, control_groups

_POWERCAP = Path("/sys/class/powercap")
_SAMPLE_SECONDS = 0.05


class GroupMemory:
    """Sample what the process's control group takes; by `with`.

    The group's own peak is of all its life. What it took at the start, with files that the kernel
    keeps, does not count.
    """

    def __init__(self, proc: Path = OWN_PROCESS) -> None:
        files = (
            group / name
            for group in control_groups(proc, "memory")
            for name in ("memory.current", "memory.usage_in_bytes")  # of version 2, and of 1
        )
        self._file = next((file for file in files if file.exists()), None)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._first = self._peak = 0

    def __enter__(self) -> GroupMemory:
        if self._file is not None:
            self._first = self._peak = self._read()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def peak_bytes(self) -> int | None:
        """Return the most that was taken beyond the start, or None where no group says."""
        return None if self._file is None else self._peak - self._first

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, self._read())

    def _read(self) -> int:
        assert self._file is not None
        with contextlib.suppress(OSError, ValueError):
            return int(self._file.read_text())
        return 0


class Energy:
    """Count joules from now on, of the processors' packages or of GPU 0, where they say it.

    Source: "Power Capping Framework" of the Linux kernel's documentation, and
    `nvmlDeviceGetTotalEnergyConsumption` of NVIDIA's Management Library.
    """

    def __init__(self, device: str, powercap: Path = _POWERCAP) -> None:
        self._read = _nvml_joules if device == "cuda" else lambda: _package_joules(powercap)
        self._start = self._read()

    def joules(self) -> float | None:
        """Return what was used, or None where nothing says it."""
        now = self._read()
        if self._start is None or now is None or now < self._start:  # a counter began again
            return None
        return now - self._start


def _package_joules(powercap: Path) -> float | None:
    values = []
    for zone in sorted(powercap.glob("*-rapl:[0-9]*")):
        if zone.name.count(":") != 1:
            continue  # a part of a package
        try:
            values.append(int((zone / "energy_uj").read_text()))
        except (OSError, ValueError):
            return None  # newer kernels show it to root alone
    return sum(values) / 1e6 if values else None


def _nvml_joules() -> float | None:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)) != 0:
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
            return None
        return millijoules.value / 1e3
    finally:
        nvml.nvmlShutdown()


def processor_state() -> dict[str, Any]:
    """Return clocks in MHz, governor, processors that may be used, and the load at this moment."""
    import psutil

    frequency = psutil.cpu_freq()
    clock = None
    if frequency is not None:
        clock = {"now": round(frequency.current), "max": round(frequency.max) or None}
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "clock_mhz": clock,
        "governor": governor.read_text().strip() if governor.exists() else None,
        "affinity": sorted(affinity(0)) if affinity else None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
