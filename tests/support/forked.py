"""Child processes of fork, for what must work in them or end at once."""

from __future__ import annotations

import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable

_LIMIT_SECONDS = 30


def status_of_child(work: Callable[[], object], limit: float = _LIMIT_SECONDS) -> int | str:
    """Run something in a child process and return its exit status, or "hangs"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside other threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # the test must not go on here
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"
