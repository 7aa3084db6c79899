"""Commands that were run: what they wrote."""

from __future__ import annotations

import subprocess


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of standard error, but for those of what is being done.

    A log is told of that only where it takes long.
    """
    return [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
