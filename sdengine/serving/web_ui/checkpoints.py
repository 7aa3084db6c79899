"""Checkpoints as the web UI lists them: the server's bundles, and the models of its catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from sdengine.errors import ConfigError
from sdengine.serving.service import Service

_SHORT = 10


@dataclass(frozen=True)
class Checkpoint:
    """What a request may run with.

    Args:
        name: without ending.
        filename: with it; of a bundle its name.
        sha256: where it is known without reading the file.
        bundle: name of the bundle that it is; "" of a model in place of a bundle's.
    """

    name: str
    filename: str
    sha256: str = ""
    bundle: str = ""

    @property
    def title(self) -> str:
        """What people choose by, as in "name.safetensors [0123456789]"."""
        return f"{self.filename} [{self.sha256[:_SHORT]}]" if self.sha256 else self.filename

    def described(self) -> dict[str, str | None]:
        """Return what a list of them says."""
        return {
            "title": self.title,
            "model_name": self.name,
            "hash": self.sha256[:_SHORT] or None,
            "sha256": self.sha256 or None,
            "filename": self.filename,
            "config": None,
        }

    def names(self) -> tuple[str, ...]:
        """Return what clients may call it, in small letters."""
        found = (self.title, self.filename, self.name, self.sha256, self.sha256[:_SHORT])
        return tuple(name.lower() for name in found if name)


def checkpoints(service: Service) -> list[Checkpoint]:
    """Return the bundles, and then the models."""
    found = []
    for name, engine in service.engines.items():
        found.append(Checkpoint(name, name, engine.bundle.manifest.source.sha256, name))
    for name, path in service.catalogue.files("model").items():
        filename = name if path.is_dir() or name.endswith(path.suffix) else name + path.suffix
        found.append(Checkpoint(name, filename))
    return found


def find_checkpoint(service: Service, field: str, given: str) -> Checkpoint:
    """Return the checkpoint of a title, a file name, a name or a hash, in any case.

    Raises:
        ConfigError: there is none.
    """
    known = checkpoints(service)
    wanted = given.strip().lower()
    for one in known:
        if wanted in one.names():
            return one
    shown = ", ".join(repr(one.title) for one in known[:10])
    raise ConfigError.for_field(field, given, f"one of {shown}; /sdapi/v1/sd-models lists them")
