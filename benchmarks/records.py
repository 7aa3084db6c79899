"""Records of results, with everything needed to judge them: JSON lines, and JSON files."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sdengine
from sdengine.errors import ConfigError, OutputError
from sdengine.images.provenance import cpu_info
from sdengine.version import __version__

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
_DISTRIBUTIONS = ("numpy", "torch")


def stamped(figures: Mapping[str, Any], *others: str, schema: int = SCHEMA) -> dict[str, Any]:
    """Return figures with schema, time, the versions of what computed, and the machine.

    Args:
        figures: what was measured, by name.
        others: distributions that computed besides numpy and torch.
        schema: of the figures.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "schema": schema,
        "time": now.isoformat(timespec="seconds"),
        **figures,
        "versions": software(*others),
        "machine": machine(),
    }


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as a JSON file of its own, in a folder that is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def put_part(path: Path, part: str, figures: Mapping[str, Any], *others: str) -> None:
    """Write a part of a record, stamped by itself, beside those that are there.

    Args:
        path: of the record.
        part: its name.
        figures, others: see `stamped`.
    """
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    parts[part] = stamped(figures, *others)
    write_record({"schema": SCHEMA, "parts": dict(sorted(parts.items()))}, path)


def append_record(record: Mapping[str, Any], path: Path) -> None:
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


def read_records(path: Path, schema: int = SCHEMA) -> list[dict[str, Any]]:
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
        if not isinstance(record, dict) or record.get("schema") != schema:
            raise ConfigError(f"{path}:{number} is not a benchmark record of schema {schema}.")
        records.append(record)
    return records


def software(*others: str) -> dict[str, str | None]:
    """Return the versions of what computes and of `others`, and the commit it was made from."""
    versions: dict[str, str | None] = {"sdengine": __version__, "commit": commit()}
    for name in (*_DISTRIBUTIONS, *others):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "processor": cpu_info()[0],
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}",
    }


def commit() -> str | None:
    """Return the commit that the package was made from; None where no checkout is known.

    It ends in "-modified" where the checkout's files differ from that commit, or the package's
    from the checkout's. The native extension is not compared.
    """
    package = Path(sdengine.__file__).parent
    root = _checkout(package)
    if root is None:
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], **_QUIET)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], **_QUIET)
    except OSError:
        return None
    if head.returncode != 0:
        return None
    is_modified = changed.returncode != 0 or not _is_copy(package, root)
    return str(head.stdout).strip() + ("-modified" if is_modified else "")


def _checkout(package: Path) -> Path | None:
    """Return the root of the checkout that the package lies in or was installed from."""
    if _is_root(package.parent):
        return package.parent
    # pip notes where a package came from (PEP 610).
    for distribution in importlib.metadata.distributions(
        name="sdengine", path=[str(package.parent)]
    ):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = urllib.parse.urlsplit(origin.get("url", ""))
        root = Path(urllib.parse.unquote(url.path))
        if url.scheme == "file" and _is_root(root):
            return root
    return None


def _is_root(folder: Path) -> bool:
    return (folder / ".git").exists() and (folder / "sdengine" / "__init__.py").is_file()


def _is_copy(package: Path, root: Path) -> bool:
    """Say whether the package's Python files are those of the checkout."""
    homes = {"kernels": root / "kernels", "benchmarks": root / "benchmarks"}
    for path in package.rglob("*.py"):
        first, *rest = path.relative_to(package).parts
        source = homes.get(first, root / "sdengine" / first).joinpath(*rest)
        if not source.is_file() or source.read_bytes() != path.read_bytes():
            return False
    return True


_QUIET: Any = {"capture_output": True, "text": True, "check": False}
