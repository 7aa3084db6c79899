"""LoRA of a request: a file and its strengths, known by its hash; what it holds is read later."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdengine.errors import AdapterError, BundleError
from sdengine.storage.content_hash import FileVersion, HashedFile, hash_open_file
from sdengine.storage.regular_file import open_regular

MOST_STRENGTH = 100.0
MAX_RANK = 1 << 16
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")
CONFIG_FILE = "adapter_config.json"
# What PEFT and diffusers call the file of a folder.
_IN_FOLDERS = tuple(
    f"{stem}{ending}"
    for stem in ("adapter_model", "pytorch_lora_weights")
    for ending in (".safetensors", ".bin")
)
_MAX_CONFIG_BYTES = 1 << 20
_WEB_UI_DIGITS = 12

Strength = float | tuple[float, float]


@dataclass(frozen=True)
class Lora:
    """A LoRA, or one of its kin, with the strengths that it is merged with.

    Args:
        name: of its file.
        sha256: of its content.
        text, unet: strengths in the text encoders and in the U-Net.
        rank: that products of two matrices are cut to, by their first rows; None leaves them.
        path: of the file or folder; None where only the record is known, which nothing can be made
            of.
    """

    name: str
    sha256: str
    text: float
    unet: float
    rank: int | None = None
    path: Path | None = field(default=None, compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it."""
        told = {"name": self.name, "sha256": self.sha256, "text": self.text, "unet": self.unet}
        return told if self.rank is None else {**told, "rank": self.rank}

    def tag(self) -> str:
        """Return what a prompt of web UIs says of it; "" where no tag can name it."""
        if set(self.name) & set("<>:"):
            return ""
        one = self.text == self.unet and self.rank is None
        numbers = [f"{self.text:g}"] if one else [f"{self.text:g}", f"{self.unet:g}"]
        numbers += [] if self.rank is None else [str(self.rank)]
        return f"<lora:{':'.join([self.name, *numbers])}>"

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


def place_of(file: Path) -> Path:
    """Return a file, or the folder that PEFT wrote it into with its settings."""
    has_settings = file.name in _IN_FOLDERS and (file.parent / CONFIG_FILE).exists()
    return file.parent if has_settings else file


def name_of(path: Path) -> str:
    """Return what prompts call a file, or a folder that PEFT or diffusers wrote."""
    if path.name in _IN_FOLDERS:
        return _encodable(path.absolute().parent.name)
    return _encodable(path.name if path.is_dir() else path.stem)


def find_lora(path: Path) -> FoundLora:
    """Find the file of a LoRA, or of a folder as PEFT or diffusers writes it, and hash it.

    Raises:
        AdapterError: it is missing, cannot be read, or its ending is unknown.
    """
    file, config = path, b""
    try:
        if path.is_dir():
            file = _file_in(path)
            if (path / CONFIG_FILE).exists():
                config = _read_config_file(path / CONFIG_FILE)
        if file.suffix.lower() not in ENDINGS:
            raise ValueError(f"its ending {file.suffix!r} is not among {', '.join(ENDINGS)}")
        with open_regular(file) as opened:
            holder = hash_open_file(opened, file)
    except (OSError, BundleError, ValueError) as error:
        raise unreadable(path, error) from None
    sha256 = holder.sha256
    if config:
        sha256 = hashlib.sha256(sha256.encode() + config).hexdigest()
    return FoundLora(holder, name_of(path), sha256, config)


def web_ui_hash(path: Path) -> str:
    """Return the hash that web UIs know a file by, 12 digits; "" where it cannot be read.

    Of a safetensors file it is that of the tensors alone, whatever its metadata say; what of other
    files web UIs take is the SHA-256 of the whole.
    """
    try:
        found = find_lora(path)
        file = found.holder.path
        if file.suffix.lower() not in (".safetensors", ".sft"):
            return found.holder.sha256[:_WEB_UI_DIGITS]
        return _of_tensors(file, found.holder.version)
    except (AdapterError, OSError):
        return ""


@functools.lru_cache(maxsize=1000)
def _of_tensors(path: Path, _: FileVersion) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()[:_WEB_UI_DIGITS]


def unreadable(path: Path, error: Exception) -> AdapterError:
    """Return the error of an adapter that cannot be read for a reason."""
    if reason := getattr(error, "strerror", None):
        message = f"adapter {str(path)!r} cannot be read: {reason}."
        return AdapterError.of_reading(message, error)
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
