"""The files of a checkpoint folder, found without ever leaving it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sdengine.errors import CheckpointError, ConfigError

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
MAX_JSON_BYTES = 16 << 20


def demo_tokenizer_dir() -> Path:
    """Return the folder with CLIP's vocabulary, which every family's checkpoints share."""
    return DEMO_CHECKPOINT / "tokenizer"


class CheckpointFolder:
    """Look up files by names that may come from the checkpoint itself.

    Args:
        path: the folder, or "demo" for the one in the package.

    Raises:
        CheckpointError: it does not exist or is not a folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if path == "demo":
            self.root = DEMO_CHECKPOINT
        else:
            try:
                self.root = Path(os.fsdecode(path))
            except TypeError:
                raise ConfigError.for_field(
                    "checkpoint", path, "a folder's path or 'demo'"
                ) from None
        try:
            what = "" if self.root.is_dir() else "is not a folder"
            if not self.root.exists():
                what = "does not exist"
        except (OSError, ValueError) as error:
            what = f"cannot be read: {error}"
        if what:
            raise CheckpointError(
                f"checkpoint {str(self.root)!r} {what}. Give a folder as diffusers writes them, "
                "with model_index.json, unet, vae, text_encoder, tokenizer and scheduler, or demo."
            )
        real = self.root.resolve()
        self._allowed = [real]
        if real.parent.name == "snapshots":
            # The download cache of the Hugging Face hub: a snapshot is made of links to its blobs.
            self._allowed.append(real.parent.parent / "blobs")

    def find(self, *names: str) -> Path | None:
        """Return the first of these relative paths that exists as a file inside the folder."""
        for name in names:
            path = self.root / name
            if not path.is_symlink() and not path.exists():
                continue
            try:
                real = path.resolve(strict=True)
            except (OSError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}.") from None
            if not any(real.is_relative_to(folder) for folder in self._allowed):
                raise CheckpointError(f"{path}: leads out of the checkpoint, to {real}.")
            if not real.is_file():
                raise CheckpointError(f"{path}: not a regular file.")
            return path
        return None

    def file(self, name: str) -> Path:
        """Return a file that must exist."""
        path = self.find(name)
        if path is None:
            raise CheckpointError(f"{self.root / name} is missing. The checkpoint is incomplete.")
        return path

    def json(self, name: str) -> dict[str, Any]:
        """Read a file that must hold a JSON object."""
        path = self.file(name)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_JSON_BYTES + 1)
            if len(data) > MAX_JSON_BYTES:
                raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES} bytes.")
            content = json.loads(data)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {str(error)[:120]}.") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object.")
        return content
