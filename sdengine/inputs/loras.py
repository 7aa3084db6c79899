"""LoRA of a request: a file and its strengths, known by its hash; what it holds is read later."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine.errors import AdapterError, BundleError
from sdengine.storage.content_hash import HashedFile, hash_open_file
from sdengine.storage.regular_file import open_regular

MOST_STRENGTH = 100.0
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")
CONFIG_FILE = "adapter_config.json"
# What PEFT and diffusers call the file of a folder.
_IN_FOLDERS = tuple(
    f"{stem}{ending}"
    for stem in ("adapter_model", "pytorch_lora_weights")
    for ending in (".safetensors", ".bin")
)
_MAX_CONFIG_BYTES = 1 << 20

Strength = float | tuple[float, float]


@dataclass(frozen=True)
class Lora:
    """A LoRA, or one of its kin, with the strengths that it is merged with.

    Args:
        name: of its file.
        sha256: of its content.
        text, unet: strengths in the text encoders and in the U-Net.
        path: of the file or folder; None where only the record is known, which nothing can be made
            of.
    """

    name: str
    sha256: str
    text: float
    unet: float
    path: Path | None = field(default=None, compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "text": self.text,
            "unet": self.unet,
        }

    def __str__(self) -> str:
        """Return a line such as "cat:0.8 (0123456789)"."""
        strengths = f"{self.text:g}" if self.text == self.unet else f"{self.text:g}:{self.unet:g}"
        return f"{self.name}:{strengths} ({self.sha256[:10]})"


@dataclass(frozen=True)
class FoundLora:
    """What a path leads to.

    Args:
        holder: the file that holds the tensors, and its version.
        name: the file's, or the folder's where the file has a name that all have.
        sha256: of all that it consists of.
        config: PEFT's settings of a folder, as they were read; empty without.
    """

    holder: HashedFile
    name: str
    sha256: str
    config: bytes = b""


def find_lora(path: Path) -> FoundLora:
    """Find the file of a LoRA, or of a folder as PEFT or diffusers writes it, and hash it.

    Raises:
        AdapterError: it is missing, cannot be read, or its ending is unknown.
    """
    file, name, config = path, path.stem, b""
    try:
        if path.is_dir():
            file, name = _file_in(path), path.name
            if (path / CONFIG_FILE).exists():
                config = _read_config_file(path / CONFIG_FILE)
        elif path.name in _IN_FOLDERS:
            name = path.absolute().parent.name
        if file.suffix.lower() not in ENDINGS:
            raise ValueError(f"its ending {file.suffix!r} is not among {', '.join(ENDINGS)}")
        with open_regular(file) as opened:
            holder = hash_open_file(opened, file)
    except (OSError, BundleError, ValueError) as error:
        raise unreadable(path, error) from None
    sha256 = holder.sha256
    if config:
        sha256 = hashlib.sha256(sha256.encode() + config).hexdigest()
    return FoundLora(holder, _encodable(name), sha256, config)


def unreadable(path: Path, error: Exception) -> AdapterError:
    """Return the error of an adapter that cannot be read for a reason."""
    if reason := getattr(error, "strerror", None):
        return AdapterError(f"adapter {str(path)!r} cannot be read: {reason}.")
    return AdapterError(f"adapter {str(path)!r}: {str(error).rstrip('.')}.")


def _encodable(text: str) -> str:
    """Return a text without what no file of text could hold: it ends up in pictures' metadata."""
    return text.encode("utf-8", "replace").decode()


def _file_in(folder: Path) -> Path:
    found = next((folder / name for name in _IN_FOLDERS if (folder / name).exists()), None)
    if found is None:
        raise ValueError(f"the folder has none of {', '.join(_IN_FOLDERS)}")
    return found


def _read_config_file(path: Path) -> bytes:
    with open_regular(path) as file:
        content = file.read(_MAX_CONFIG_BYTES + 1)
    if len(content) > _MAX_CONFIG_BYTES:
        raise ValueError(f"{CONFIG_FILE} is larger than {_MAX_CONFIG_BYTES} bytes")
    return content
