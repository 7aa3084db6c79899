"""Write a bundle so that it is either there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sdengine.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from sdengine.bundle.reader import open_bundle, sha256_of
from sdengine.errors import OutputError


def write_bundle(
    target_dir: str | os.PathLike[str], fill: Callable[[Path], Manifest], *, force: bool = False
) -> Path:
    """Write a bundle through a temporary folder beside it, then rename.

    Args:
        target_dir: where the bundle shall be; its parent must exist.
        fill: writes every file except the manifest into the folder that it is given and returns
            the manifest; the manifest's `files` is replaced by what is found there.
        force: replace a bundle that is there already.

    Returns:
        The bundle's folder.

    Raises:
        OutputError: the place is taken or cannot be written.
    """
    target = Path(target_dir)
    check_target(target, force=force)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be written: {error.strerror}.") from None
    try:
        manifest = fill(folder)
        manifest = manifest.model_copy(update={"files": _list_files(folder)})
        text = manifest.model_dump_json(indent=2)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
        open_bundle(folder, verify="size")  # what is written must be readable
        folder.chmod(0o755)  # mkdtemp makes it private
        _replace(folder, target)
    except OSError as error:
        raise OutputError(f"bundle {str(target)!r} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a place where a bundle cannot be written, before the work of building it."""
    if not target.parent.is_dir():
        raise OutputError(f"folder {str(target.parent)!r} does not exist; make it first.")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"folder {str(target.parent)!r} is not writable.")
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise OutputError(f"{str(target)!r} exists; choose another place or use --force.")
    if not (target.is_dir() and (target / MANIFEST_NAME).is_file()):
        raise OutputError(f"{str(target)!r} exists and is not a bundle; it is left alone.")


def _list_files(folder: Path) -> list[FileEntry]:
    entries = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            entries.append(
                FileEntry(path=relative, size_bytes=path.stat().st_size, sha256=sha256_of(path))
            )
    return entries


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
