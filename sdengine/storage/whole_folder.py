"""Whole folders: filled beside their place and renamed, so that one is complete or not there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from sdengine.errors import OutputError
from sdengine.storage.temporary import remove_abandoned, temporary_folder

_ASIDE = ".old"  # where a folder steps to for the moment in which another takes its place


def write_folder(
    target: Path,
    fill: Callable[[Path], None],
    *,
    what: str,
    marker: str | None = None,
    force: bool = False,
) -> Path:
    """Fill a temporary folder beside the target, then rename it.

    Who may read it follows from the umask, as for other new files.

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
    _tidy(target)
    check_place(target, what=what, marker=marker, force=force)
    try:
        with temporary_folder(target) as folder:
            fill(folder)
            give_usual_modes(folder)
            _replace(folder, target)
    except OSError as error:
        raise OutputError(f"{what} {str(target)!r} cannot be written: {error}.") from error
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


def give_usual_modes(folder: Path) -> None:
    """Let others read what is in a folder where the user lets them read what is new.

    Libraries write some files for their user alone. What is usual is read from the folder: the
    umask itself cannot be asked for without changing it.
    """
    usual = stat.S_IMODE(folder.stat().st_mode) & 0o777
    for path in folder.rglob("*"):
        wanted = usual if path.is_dir() else usual & 0o666
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode & 0o777 != wanted:
            with contextlib.suppress(PermissionError):  # a link to a file of somebody else's
                path.chmod(mode & ~0o777 | wanted)


def _tidy(target: Path) -> None:
    """Clear up after writers that were killed."""
    remove_abandoned(target.parent)
    aside = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.sdengine{re.escape(_ASIDE)}")
    with contextlib.suppress(OSError):
        for path in [p for p in target.parent.iterdir() if aside.fullmatch(p.name)]:
            if target.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:  # killed between two renamings: this is what was there
                path.rename(target)


def _replace(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    # A folder cannot be replaced in one step: the old one steps aside and comes back on failure.
    aside = folder.with_name(folder.name + _ASIDE)
    target.rename(aside)
    try:
        folder.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
