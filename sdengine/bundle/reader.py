"""Bundle reader: untrusted input, every listed file checked before any is used."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sdengine.bundle.architecture import TextEncoderArchitecture
from sdengine.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MERGES_FILE,
    TOKEN_TABLE_TENSOR,
    VOCAB_FILE,
    FileEntry,
    Manifest,
    NetworkEntry,
    parse_manifest,
)
from sdengine.errors import BundleError, ConfigError, UnsupportedShapeError
from sdengine.storage.content_hash import HashedFile, hash_open_file, sha256_of
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_tensors

DEMO_BUNDLE = Path(__file__).parent / "demo"
# Checkpoints in the package of which it holds no bundle; and parts of bundles.
DEMO_VARIANTS = ("demo-inpainting", "demo-depth")
_DEMO_PARTS = {"demo-edges": "--control edges=demo-edges", "demo-tiny": "--tiny-vae demo-tiny"}
HASH_BY_DEFAULT_BYTES = 256 << 20
HASH_ANYWAY_BYTES = 32 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and files passed their checks."""

    manifest: Manifest
    root: Path
    sha256: str = ""  # of the manifest, which holds that of every file

    def path(self, relative: str) -> Path:
        """Return the place of a file that the manifest lists; nothing else is reachable."""
        if all(entry.path != relative for entry in self.manifest.files):
            raise BundleError(f"{self.root}: the manifest lists no file {relative!r}.")
        return self.root / relative

    def open(self, relative: str) -> BinaryIO:
        """Open a file that the manifest lists."""
        path = self.path(relative)
        try:
            return open_regular(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}.") from None

    def hashed(self, relative: str, file: BinaryIO) -> HashedFile:
        """Return an open file's hash, and warn where it is not what the manifest says."""
        found = hash_open_file(file, self.path(relative))
        if any(e.path == relative and e.sha256 != found.sha256 for e in self.manifest.files):
            _warn_of_other_content(found.path)
        return found

    def network(self, name: str) -> NetworkEntry:
        """Return the entry of one network."""
        try:
            return self.manifest.networks[name]
        except KeyError:
            raise BundleError(
                f"{self.root}: there is no network {name!r}; it holds "
                f"{', '.join(sorted(self.manifest.networks))}. Build the bundle again."
            ) from None

    def token_table(self, encoder: TextEncoderArchitecture) -> NDArray[Any]:
        """Map the token embeddings of one text encoder.

        Returns:
            [vocab, hidden_size], fp16 or fp32 as stored; read-only.
        """
        path = self.path(encoder.token_table)
        tensors = map_tensors(path)
        if TOKEN_TABLE_TENSOR not in tensors:
            raise BundleError(f"{path}: there is no {TOKEN_TABLE_TENSOR}. Build the bundle again.")
        table = tensors[TOKEN_TABLE_TENSOR]
        hidden_size = encoder.hidden_size
        if table.dtype not in (np.float16, np.float32) or table.shape[1:] != (hidden_size,):
            raise BundleError(
                f"{path}: {TOKEN_TABLE_TENSOR} is {table.dtype} {list(table.shape)}; expected "
                f"float16 or float32 [vocab, {hidden_size}]."
            )
        return table


def open_bundle(path: str | os.PathLike[str] = "demo", verify: str = "auto") -> Bundle:
    """Open a bundle and check it.

    Args:
        path: the bundle's folder, or "demo" for the one inside the package.
        verify: "size" compares file sizes, "hash" SHA-256 too. "auto" hashes every file when the
            bundle has less than 256 MiB, else those up to 32 MiB: graphs, tables, tokenizer.

    Raises:
        BundleError: it is missing, foreign, incomplete or altered; the message names the file.
    """
    if verify not in ("auto", "size", "hash"):
        raise ConfigError.for_field("verify", verify, "auto, size or hash")
    root = DEMO_BUNDLE if path == "demo" else _checked_argument(path)
    content = _read_manifest(root)
    manifest = parse_manifest(content)
    _check_required(root, manifest)
    total_bytes = sum(entry.size_bytes for entry in manifest.files)
    is_small = total_bytes < HASH_BY_DEFAULT_BYTES
    real_root = root.resolve()
    for entry in manifest.files:
        by_default = is_small or entry.size_bytes <= HASH_ANYWAY_BYTES
        _check_file(real_root, entry, verify == "hash" or (verify == "auto" and by_default))
    return Bundle(manifest, root, hashlib.sha256(content).hexdigest())


def _checked_argument(path: object) -> Path:
    try:
        return Path(os.fsdecode(path))  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError.for_field("bundle", path, "a folder's path or 'demo'") from None


def _read_manifest(root: Path) -> bytes:
    path = root / MANIFEST_NAME
    try:
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            if root == DEMO_BUNDLE:
                raise BundleError(
                    "the demo bundle is not part of this installation. Install sdengine again, "
                    "or build a bundle: sdengine build CHECKPOINT -o BUNDLE."
                )
            hint = "Give a folder that `sdengine build` wrote, or demo."
            if str(root) in DEMO_VARIANTS:
                hint = f"It is a checkpoint in the package: sdengine build {root} -o {root}."
            elif str(root) in _DEMO_PARTS:
                option = _DEMO_PARTS[str(root)]
                hint = f"It is a part of bundles: sdengine build demo {option} -o BUNDLE."
            raise BundleError.of_usage(f"bundle {str(root)!r} {what}. {hint}")
        if not path.is_file():
            raise BundleError(f"{root}: there is no {MANIFEST_NAME}, so it is not a bundle.")
        with open_regular(path) as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None


def _check_required(root: Path, manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    required = {VOCAB_FILE, MERGES_FILE}
    required.update(encoder.token_table for encoder in manifest.architecture.text_encoders)
    for network in manifest.networks.values():
        required.update(network.files)
    missing = sorted(required - listed)
    if missing:
        raise BundleError(f"{root}: the manifest does not list {', '.join(missing[:5])}.")


def _check_file(root: Path, entry: FileEntry, with_hash: bool) -> None:
    path = root / entry.path
    try:
        inside = path.resolve(strict=True).is_relative_to(root)
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path}: listed in the manifest but unreadable: {error}.") from None
    if not inside:
        raise BundleError(f"{path}: a link leads out of the bundle.")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: not a regular file.")
    if status.st_size != entry.size_bytes:
        raise BundleError(
            f"{path}: {status.st_size} bytes, the manifest says {entry.size_bytes}. "
            "The copy is incomplete or altered; get the bundle again."
        )
    if with_hash:
        found = sha256_of(path)
        if found != entry.sha256:
            raise BundleError(
                f"{path}: SHA-256 is {found[:16]}..., the manifest says {entry.sha256[:16]}.... "
                "The file was altered; get the bundle again."
            )


@functools.cache
def _warn_of_other_content(path: Path) -> None:
    _log.warning("%s is not the file that the manifest describes; see `sdengine verify`.", path)


def check_size(width: int, height: int, manifest: Manifest) -> None:
    """Refuse an image size that a bundle does not run.

    Raises:
        UnsupportedShapeError: it is neither one that the bundle was built for, nor are its sides
            multiples of what a bundle of target native takes; the message names the nearest.
    """
    if (width, height) in manifest.resolutions:
        return
    multiple = manifest.size_multiple
    if multiple is not None:
        if min(width, height) >= multiple and width % multiple == height % multiple == 0:
            return
        near = [max(1, round(side / multiple)) * multiple for side in (width, height)]
        raise UnsupportedShapeError(
            f"width, height: {width}x{height} is not accepted; expected multiples of {multiple} "
            f"pixels, which the levels of this model need. The nearest is {near[0]}x{near[1]}."
        )
    sizes = manifest.resolutions
    nearest = min(sizes, key=lambda size: abs(size[0] - width) + abs(size[1] - height))
    built = ", ".join(f"{w}x{h}" for w, h in sizes[:20])
    raise UnsupportedShapeError(
        f"width, height: the bundle was not built for {width}x{height}; the nearest that it was "
        f"built for is {nearest[0]}x{nearest[1]} (all: {built}). Other sizes need "
        "`sdengine build --resolutions`; bundles of target native take any."
    )
