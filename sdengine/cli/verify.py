"""`sdengine verify`: every file of a bundle against its hash."""

from __future__ import annotations

from typing import Annotated

import typer

from sdengine.cli.terminal import progress_bar, say


def verify(
    bundle: Annotated[str, typer.Argument(help="Bundle, or demo.")] = "demo",
) -> None:
    """Check a bundle's manifest and the size and SHA-256 of every file."""
    from sdengine.bundle.reader import open_bundle

    with progress_bar("hashing"):
        manifest = open_bundle(bundle, verify="hash").manifest
    size_mb = sum(entry.size_bytes for entry in manifest.files) / 1e6
    say(f"{manifest.name}: {len(manifest.files)} files, {size_mb:.1f} MB, all as built")
