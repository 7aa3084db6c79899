"""Process of a command: its standard streams, and the signals that end it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

# Ctrl-C, what supervisors send, and what a closing terminal sends, where the system has it.
_ENDING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
# What cleans up is not disturbed by a second signal: terminals and supervisors send several.
_CLEAN_UP_SECONDS = 5.0


class EndedBySignal(KeyboardInterrupt):
    """Raised in the main thread where a signal ends the process, so that all blocks clean up."""


class Ending:
    """The signal that ended the process; `number` is 0 as long as none has come."""

    number = 0
    _since = 0.0

    @property
    def status(self) -> int:
        """Return the exit status, which is a shell's for a command that a signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.number and time.monotonic() - self._since < _CLEAN_UP_SECONDS:
            return
        self.number, self._since = number, time.monotonic()
        raise EndedBySignal


@contextmanager
def ending_signals() -> Iterator[Ending]:
    """Turn each signal that ends a process into `EndedBySignal`; say which one came.

    Signals that are ignored, as nohup and a shell's background jobs want them, stay so. Outside of
    the main thread, where none can be handled, nothing changes.
    """
    ending = Ending()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ending.receive)
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Let no command fail because nobody reads what it says.

    Closed streams are opened on nothing, so that no other file gets their numbers; what is written
    to a broken pipe is lost, and so is what standard error cannot take. What an encoding lacks is
    escaped. Streams that were replaced, as tests do, are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Output, 1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_ErrorOutput, 2, sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def drop_output(stream: TextIO) -> None:
    """Let what is written to a stream from now on be lost, what is still buffered included."""
    with contextlib.suppress(OSError, ValueError):  # a stand-in for a stream has no number
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class _Output(io.TextIOWrapper):
    """Standard output; a reader that went away has seen enough."""

    # Not the file below is made so: a signal that ended its `write` would have it repeated.
    lost: tuple[type[OSError], ...] = (BrokenPipeError,)

    def write(self, text: str, /) -> int:
        """Write text, or lose it."""
        try:
            return super().write(text)
        except self.lost:
            drop_output(self)
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or lose it."""
        try:
            super().flush()
        except self.lost:
            drop_output(self)
            super().flush()


class _ErrorOutput(_Output):
    """Standard error; where it cannot be written, nothing can say so."""

    lost = (OSError,)


def _stream(kind: type[_Output], number: int, before: TextIO | None) -> TextIO:
    """Open a stream anew, with the encoding that it had."""
    encoding = "utf-8" if before is None else before.encoding
    file = open(number, "wb", closefd=False)  # noqa: SIM115 - as long as the process
    lines = number == 2 or file.isatty()
    return kind(file, encoding, "backslashreplace", line_buffering=lines)
