"""Model of a request: a checkpoint, or a mixture of several, known by hashes and shares."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine.errors import BundleError, CheckpointError, ConfigError
from sdengine.inputs.given_files import ByFile, PathLike
from sdengine.storage.checkpoint_folder import CheckpointFolder, weight_stems
from sdengine.storage.content_hash import hash_open_file
from sdengine.storage.regular_file import open_regular

SCHEDULER_FILE = "scheduler/scheduler_config.json"
OWN = "bundle"  # what the bundle's own weights are called in a mixture
# Of a checkpoint, in the order of a request.
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
MOST_TERMS, MOST_SHARE = 16, 100.0
ACCEPTED = (
    f"a checkpoint's path, or up to {MOST_TERMS} paths with their shares, from {-MOST_SHARE:g} to "
    f"{MOST_SHARE:g}, which make 1"
)
Given = PathLike | ByFile[float]


@dataclass(frozen=True)
class ModelTerm:
    """One checkpoint of a model, times its share.

    Args:
        name: of its file or folder, or OWN.
        sha256: of its content; empty of the bundle's own.
        share: of all; those of a model make 1.
        path: of the file or folder; None where only the record is known, which nothing can be made
            of, and of the bundle's own.
    """

    name: str
    sha256: str
    share: float
    path: Path | None = field(default=None, compare=False, repr=False)

    @property
    def is_own(self) -> bool:
        """Whether the bundle's own weights are meant."""
        return not self.sha256

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        return {"name": self.name, "sha256": self.sha256, "share": self.share}

    def __str__(self) -> str:
        """Return a text such as "0.7 photo (0123456789)"."""
        share = "" if self.share == 1 else f"{self.share:g} "
        return f"{share}{self.name}" + (f" ({self.sha256[:10]})" if self.sha256 else "")


@dataclass(frozen=True)
class FoundModel:
    """What a path leads to.

    Args:
        path: as it was given.
        name: of it, without ending.
        sha256: of all files, of a folder with the settings beside them.
        files: by part, with the hash of each; under "" a single file.
        places: subfolders of the parts in a folder.
    """

    path: Path
    name: str
    sha256: str
    files: Mapping[str, Mapping[Path, str]]
    places: Mapping[str, str]

    def part_sha256(self, part: str) -> str:
        """Return the hash of what a part is made of."""
        return joined_hash(list(self.files.get(part, self.files.get("", {})).values()))


def find_model(path: Path) -> FoundModel:
    """Find a checkpoint's files and hash them; nothing else of them is read.

    Raises:
        CheckpointError: it is missing, cannot be read, or is no checkpoint.
    """
    try:
        if not path.is_dir():
            if path.suffix.lower() not in ENDINGS:
                ending = repr(path.suffix) if path.suffix else "no ending"
                message = f"{ending} is not among {', '.join(ENDINGS)}"
                if not path.exists():
                    raise CheckpointError.of_usage(f"{message}, and it does not exist.")
                raise CheckpointError(f"{message}.")
            sha256 = _sha256(path)
            return FoundModel(path, _encodable(path.stem), sha256, {"": {path: sha256}}, {})
        folder = CheckpointFolder(path)
        places = _places(folder)
        files = {
            part: {
                file: _sha256(file) for file in folder.weight_files(place, weight_stems(part), None)
            }
            for part, place in places.items()
        }
        # Which decide whether it fits.
        told = [f"{place}/config.json" for place in places.values()]
        found_settings = [folder.find(name) for name in (*told, SCHEDULER_FILE)]
        settings = [_sha256(file) for file in found_settings if file is not None]
    except (OSError, BundleError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise CheckpointError.of_reading(f"model {str(path)!r}: {reason}.", error) from None
    except CheckpointError as error:
        error.args = (f"model {str(path)!r}: {error}",)
        raise
    hashes = [one for part in files.values() for one in part.values()]
    sha256 = joined_hash([*hashes, *settings])
    return FoundModel(path, _encodable(path.resolve().name), sha256, files, places)


def model_terms(field_name: str, given: Given) -> tuple[ModelTerm, ...]:
    """Return the terms of what a caller gives; files are hashed, and not yet read.

    Args:
        field_name: for messages.
        given: a path, OWN, or several with their shares.

    Raises:
        ConfigError: something is no path, or the shares do not make 1.
        CheckpointError: a path leads to no checkpoint.
    """
    shares = {given: 1.0} if isinstance(given, str | os.PathLike) else given
    if not isinstance(shares, Mapping):
        raise ConfigError.for_field(field_name, given, ACCEPTED)
    for path in shares:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ConfigError.for_field(field_name, given, ACCEPTED)
    check_shares(field_name, list(shares.values()))
    terms = []
    for path, share in shares.items():
        if path == OWN:
            terms.append(ModelTerm(OWN, "", float(share)))
        elif share:
            found = find_model(Path(path))
            terms.append(ModelTerm(found.name, found.sha256, float(share), found.path))
    return tuple(terms)


def check_shares(field_name: str, shares: list[Any]) -> None:
    """Refuse what are no shares of a model.

    Raises:
        ConfigError: naming what is wrong.
    """
    good = 0 < len(shares) <= MOST_TERMS and all(
        type(share) in (int, float) and abs(share) <= MOST_SHARE for share in shares
    )
    if not good:
        raise ConfigError.for_field(field_name, shares, ACCEPTED)
    total = sum(shares)
    if not abs(total - 1) < 1e-6:
        raise ConfigError.for_field(
            field_name,
            shares,
            "shares that make 1",
            f"These make {total:g}. A weighted sum is {{a: 0.7, b: 0.3}}; to add half the "
            "difference between b and c, {a: 1, b: 0.5, c: -0.5}.",
        )


def joined_hash(hashes: list[str]) -> str:
    """Return the hash of several files; of one its own."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _places(folder: CheckpointFolder) -> dict[str, str]:
    """Return the subfolder of each part; "." where the folder is a U-Net's own."""
    if folder.find("model_index.json") or folder.find("unet/config.json"):
        return {part: part for part in PARTS if folder.find(f"{part}/config.json")}
    kind = folder.json("config.json").get("_class_name")
    if kind != "UNet2DConditionModel":
        raise CheckpointError(
            f"{folder.root / 'config.json'}: {str(kind)[:80]!r} is not a UNet2DConditionModel."
        )
    return {"unet": "."}


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hash_open_file(file, path).sha256


def _encodable(text: str) -> str:
    """Return a text without what no file of text could hold: it ends up in pictures' metadata."""
    return text[:200].encode("utf-8", "replace").decode()
