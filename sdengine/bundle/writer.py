"""Bundle writer: a folder that is there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sdengine.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from sdengine.bundle.reader import open_bundle
from sdengine.storage.content_hash import sha256_of
from sdengine.storage.whole_folder import check_place, write_folder

_WHAT = "bundle"


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

    def fill_with_manifest(folder: Path) -> None:
        manifest = fill(folder)
        manifest = manifest.model_copy(update={"files": list_files(folder)})
        text = manifest.model_dump_json(indent=2)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
        open_bundle(folder, verify="size")  # what is written must be readable

    target = Path(target_dir)
    return write_folder(target, fill_with_manifest, what=_WHAT, marker=MANIFEST_NAME, force=force)


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a place where a bundle cannot be written, before the work of building it."""
    check_place(target, what=_WHAT, marker=MANIFEST_NAME, force=force)


def list_files(folder: Path) -> list[FileEntry]:
    """Return every file in a folder with its size and hash."""
    entries = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            relative = path.relative_to(folder).as_posix()
            entries.append(
                FileEntry(path=relative, size_bytes=path.stat().st_size, sha256=sha256_of(path))
            )
    return entries
