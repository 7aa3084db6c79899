"""Process memory: the peak of what a build takes, and what this machine can give."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil

_SAMPLE_SECONDS = 0.05


def free_bytes() -> int:
    """Return how much memory can be had without swapping."""
    return int(psutil.virtual_memory().available)


class PeakMemory:
    """Watch how much memory of its own the process holds; pages of mapped files do not count."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            self._see(_own_bytes())
            if self._stop.wait(_SAMPLE_SECONDS):
                return

    def add_process(self, peak_bytes: int) -> None:
        """Count the peak of another process that ran beside this one."""
        self._see(peak_bytes + _own_bytes())

    def _see(self, size_bytes: int) -> None:
        with self._lock:
            self.peak_bytes = max(self.peak_bytes, size_bytes)

    def end(self) -> int:
        """Stop watching and return the largest value seen."""
        self._stop.set()
        self._thread.join()
        return self.peak_bytes


def _own_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():  # only Linux has it
        return 0
    found = re.search(r"^RssAnon:\s*(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
