"""A bundle of one network alone, as far as a session asks for one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sdengine.bundle.manifest import NetworkEntry, TensorEntry
from sdengine.bundle.reader import Bundle
from sdengine.models.network_contract import NetworkContract
from sdengine.storage.content_hash import sha256_of


def files_as_bundle(folder: Path, contract: NetworkContract, files: list[str]) -> Any:
    """Stand for a bundle with one network, which ControlNets have no other of."""
    entry = NetworkEntry(
        files=files,
        inputs=[_entry(spec) for spec in contract.inputs],
        outputs=[_entry(spec) for spec in contract.outputs],
    )
    listed = [SimpleNamespace(path=f, sha256=sha256_of(folder / f)) for f in files]
    manifest: Any = SimpleNamespace(files=listed, networks={contract.name: entry})
    return Bundle(manifest, folder)


def _entry(spec: Any) -> TensorEntry:
    return TensorEntry(name=spec.name, shape=list(spec.shape), dtype=spec.dtype)
