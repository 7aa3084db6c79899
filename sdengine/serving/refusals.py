"""Refusals of what may be asked again later, or of another server."""

from __future__ import annotations

from sdengine.errors import SdengineError


class BusyError(SdengineError):
    """Report that a request may come again later: the queue, a quota or the memory is full.

    Args:
        message: why.
        retry_after: seconds.
        reason: for metrics.
    """

    def __init__(self, message: str, retry_after: int, reason: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class DrainingError(SdengineError):
    """Report that the server finishes what it has and takes nothing new."""
