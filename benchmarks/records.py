"""Records of results: one JSON line a case, with everything needed to judge it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdengine.benchmarks.cases import Case
from sdengine.errors import ConfigError, OutputError
from sdengine.images.provenance import cpu_info
from sdengine.version import __version__

SCHEMA = 1
_DISTRIBUTIONS = ("numpy", "torch")
_GPU_DISTRIBUTIONS = ("triton", "tensorrt", "tensorrt-rtx-cu13")


def make_record(case: Case, figures: dict[str, Any]) -> dict[str, Any]:
    """Return a case's figures with the software and the machine that gave them."""
    now = datetime.datetime.now(datetime.timezone.utc)
    others = _GPU_DISTRIBUTIONS if case.device == "cuda" else ()
    return {
        "schema": SCHEMA,
        "time": now.isoformat(timespec="seconds"),
        "case": asdict(case),
        **figures,
        "versions": software(*others),
        "machine": machine(),
    }


def append_record(record: dict[str, Any], path: Path) -> None:
    """Add a record to a file of JSON lines.

    Raises:
        OutputError: the file cannot be written.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def check_writable(path: Path) -> None:
    """Refuse a file that records cannot be added to, before the minutes that they take."""
    is_new = not path.exists()
    try:
        path.open("a").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines.

    Raises:
        ConfigError: the file cannot be read, or a line is not a record of this schema.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise ConfigError(f"{path}:{number} is not a benchmark record of schema {SCHEMA}.")
        records.append(record)
    return records


def software(*others: str) -> dict[str, str | None]:
    """Return the versions of what computes and of `others`, and the commit in a checkout."""
    versions: dict[str, str | None] = {"sdengine": __version__, "commit": _commit()}
    for name in (*_DISTRIBUTIONS, *others):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import psutil

    return {
        "processor": cpu_info()[0],
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
    }


def _commit() -> str | None:
    """Return the checkout's commit, marked when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        # Fails for an installed copy, even inside another project's checkout.
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", here.name], **_QUIET)
        if tracked.returncode != 0:
            return None
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **_QUIET)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/"], **_QUIET)
    except OSError:
        return None
    commit: str = head.stdout.strip()
    return commit + ("-modified" if changed.returncode else "")


_QUIET: Any = {"capture_output": True, "text": True, "check": False}
