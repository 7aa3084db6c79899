"""The typed errors of sdengine: every failure a caller can meet has a class here.

A message says what was asked, what was found, what is accepted and what to do next.
"""

from __future__ import annotations

import itertools
import reprlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class _ShortRepr(reprlib.Repr):
    """`repr` of as much of a value as is shown: clients may give millions of things."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 20
        self.maxdict = self.maxarray = 20
        self.maxstring = self.maxlong = self.maxother = 200

    def repr_str(self, x: str, level: int) -> str:
        # A path's end tells more than its middle.
        return repr(x if len(x) <= 200 else f"{x[:100]}...{x[-100:]}")

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 and x:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in itertools.islice(x.items(), self.maxdict)
        ]
        return f"{{{', '.join(pairs)}{', ...' if len(x) > self.maxdict else ''}}}"


_SHORT = _ShortRepr()


class SdengineError(Exception):
    """Base of every error that sdengine raises on purpose."""

    exit_status = 1

    @classmethod
    def of_usage(cls, message: str) -> Self:
        """Make one that is told as wrong usage: what an argument names is not there."""
        error = cls(message)
        error.exit_status = ConfigError.exit_status
        return error

    @classmethod
    def of_reading(cls, message: str, cause: Exception) -> Self:
        """Make one of what could not be read: wrong usage if nothing is there, else a failure."""
        is_absent = isinstance(cause, (FileNotFoundError, NotADirectoryError))
        return cls.of_usage(message) if is_absent else cls(message)


class ConfigError(SdengineError, ValueError):
    """Report an invalid argument or configuration value, before any work started."""

    exit_status = 2

    @classmethod
    def for_field(cls, field: str, value: object, accepted: str, hint: str = "") -> ConfigError:
        """Build the standard message for one invalid field.

        Args:
            field: name of the argument, as the caller wrote it.
            value: what was given; long values are shortened.
            accepted: what would have been valid.
            hint: what to do next, a sentence.
        """
        shown = _SHORT.repr(value)
        if len(shown) > 80:
            shown = f"{shown[:38]}...{shown[-39:]}"
        return cls(f"{field}: {shown} is not accepted; expected {accepted}." + _after(hint))


class UnsupportedShapeError(ConfigError):
    """Report an image size or batch that the bundle was not built for."""


class CheckpointError(SdengineError):
    """Report a checkpoint that is missing, malformed or of an unknown kind."""


class AdapterError(SdengineError):
    """Report a LoRA or its kin that is missing, malformed, of an unknown kind or another model."""


class TrainingError(SdengineError):
    """Report a training that cannot go on; what was saved of it is kept."""


class ExportError(SdengineError):
    """Report a network that could not be exported or whose export computes something else."""


class BundleError(SdengineError):
    """Report a bundle that is missing, malformed, foreign or altered."""


class BackendUnavailableError(SdengineError):
    """Report a backend that this installation or machine cannot run."""


class IncompleteInstallationError(BackendUnavailableError, ImportError):
    """Report a package without a part that installing adds, such as the compiled extension."""

    @classmethod
    def of(cls, part: str, folder: str) -> IncompleteInstallationError:
        """Build the standard message, with what to do next.

        Args:
            part: what is missing, such as "_native".
            folder: that the package was imported from.
        """
        return cls(
            f"sdengine.{part} is not in {folder!r}, from where sdengine was imported. If that is a "
            "folder of sources, Python found it before the installed package: start Python in "
            "another folder, or install with `pip install -e .`, which runs from the sources. "
            "Otherwise install again: pip install --force-reinstall sdengine."
        )


class EngineBuildError(SdengineError):
    """Report a failure while compiling a network for its target."""


class DeviceError(SdengineError):
    """Report a failure of the device or of its runtime library."""


class DeviceLostError(DeviceError):
    """Report a GPU that an earlier failure made unusable for as long as this process lives."""


class NonFiniteError(DeviceError):
    """Report a NaN or infinity in the output of a stage; the message names the stage."""

    @classmethod
    def at(cls, stage: str, what: str = "gave NaN or infinity") -> NonFiniteError:
        """Build the standard message, with what to do next.

        Args:
            stage: that gave it, such as "unet".
            what: which of its outputs holds what.
        """
        hint = "Try precision fp32; if it stays, the checkpoint is damaged."
        return cls(f"{stage}: {what}. {hint}")


class OutOfMemoryError(DeviceError):
    """Report that a memory budget or the device's memory does not suffice."""


class OutputError(SdengineError):
    """Report a result that could not be written; no partial file is left behind."""


class Cancelled(SdengineError):
    """Report that the caller cancelled the request."""

    exit_status = 130


def _after(hint: str) -> str:
    return f" {hint}" if hint else ""
