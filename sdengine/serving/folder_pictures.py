"""Folder pictures: pictures of a payload as files below one folder, or in base64."""

from __future__ import annotations

from pathlib import Path

from sdengine.errors import ConfigError
from sdengine.inputs.picture import MAX_FILE_BYTES, MAX_PIXELS, read_file
from sdengine.serving.payload import InBase64

# What no base64 has in it, and every name of a picture.
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_MAX_PATH_CHARACTERS = 4096
_ACCEPTED = "a picture in base64, or the path of one, relative to the folder of the requests"


class FolderPictures(InBase64):
    """Pictures in base64, and files of a folder by their paths from there.

    No path leads out of the folder, by `..` or by links, or to anything but a regular file.

    Args:
        folder: that paths start from.
        max_pixels, max_bytes: of one picture, and of its file.
    """

    def __init__(
        self, folder: Path, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
    ) -> None:
        super().__init__(max_pixels)
        self.folder = folder.resolve()
        self.max_bytes = max_bytes

    def __call__(self, field: str, value: object) -> bytes:
        """Return the content of a picture's file; see `Pictures`."""
        if not isinstance(value, str) or not value.lower().endswith(_ENDINGS) or "://" in value:
            return super().__call__(field, value)
        content = read_file(field, self._inside(field, value), self.max_bytes)
        return self.checked(field, content)

    def _inside(self, field: str, value: str) -> Path:
        if len(value) > _MAX_PATH_CHARACTERS or "\0" in value or Path(value).is_absolute():
            raise ConfigError.for_field(field, value, _ACCEPTED)
        try:
            path = (self.folder / value).resolve()
            is_inside = path.is_relative_to(self.folder)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            reason = getattr(error, "strerror", None) or "its links lead in a circle"
            raise ConfigError(f"{field}: {value[:200]!r} cannot be read: {reason}.") from None
        if not is_inside:  # whether there is anything is not told
            hint = "It leads out of that folder."
            raise ConfigError.for_field(field, value, _ACCEPTED, hint)
        return path
