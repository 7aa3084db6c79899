"""Whole folders: filled beside their place and renamed, so that one is complete or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sdengine.errors import OutputError


def write_folder(
    target: Path,
    fill: Callable[[Path], None],
    *,
    what: str,
    marker: str | None = None,
    force: bool = False,
) -> Path:
    """Fill a temporary folder beside the target, then rename it.

    Args:
        target: where the folder shall be; its parent must exist.
        fill: writes every file into the folder that it is given.
        what: is written, for messages: "bundle".
        marker: a file that every such folder holds; only a folder with one is ever replaced,
            and None means that nothing is.
        force: replace such a folder that is there already.

    Returns:
        The target.

    Raises:
        OutputError: the place is taken or cannot be written.
    """
    check_place(target, what=what, marker=marker, force=force)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}.") from None
    try:
        fill(folder)
        folder.chmod(0o755)  # mkdtemp makes it private
        _replace(folder, target)
    except OSError as error:
        raise OutputError(f"{what} {str(target)!r} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def check_place(target: Path, *, what: str, marker: str | None = None, force: bool = False) -> None:
    """Refuse a place that cannot be written, before the work for what shall be there."""
    if not target.parent.is_dir():
        raise OutputError(f"folder {str(target.parent)!r} does not exist; make it first.")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"folder {str(target.parent)!r} is not writable.")
    if not target.exists() and not target.is_symlink():
        return
    if marker is None:
        raise OutputError(f"{str(target)!r} exists; choose another place for the {what}.")
    if not force:
        raise OutputError(f"{str(target)!r} exists; choose another place or use --force.")
    if not (target.is_dir() and (target / marker).is_file()):
        raise OutputError(f"{str(target)!r} exists and is not a {what}; it is left alone.")


def _replace(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    # A folder cannot be replaced in one step: the old one steps aside and comes back on failure.
    aside = folder.with_name(folder.name + ".old")
    target.rename(aside)
    try:
        folder.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
