"""Split workers: a thread for each half of what is split, and a wait that leaves neither behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from sdengine.backends.forks import watch_forks
from sdengine.errors import DeviceError

_T = TypeVar("_T")


class SplitWorker:
    """One thread that does what one half asks for.

    It starts with the first job, and again in a child process of fork.

    Args:
        name: of the thread.
        cpus: the processors that it, and every thread that it starts, may run on; none for any.
    """

    def __init__(self, name: str, cpus: Sequence[int] = ()) -> None:
        self._name = name
        self._cpus = tuple(cpus)
        self._is_closed = False
        self.after_fork()
        watch_forks(self)

    def after_fork(self) -> None:
        """Forget the thread, which a child process does not have."""
        self._bound = threading.local()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)

    def submit(self, job: Callable[[], _T]) -> Future[_T]:
        """Have it do a job after those that it was given before.

        Raises:
            DeviceError: it was closed, or the system refuses a thread.
        """
        try:
            return self._executor.submit(self._do, job)
        except RuntimeError as error:
            raise DeviceError(f"split_guidance: a half does not run: {error}.") from None

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more jobs."""
        return self._is_closed

    def close(self) -> None:
        """End the thread once its jobs are done; a second call does nothing."""
        self._is_closed = True
        self._executor.shutdown(wait=True)

    def _do(self, job: Callable[[], _T]) -> _T:
        if self._cpus and not hasattr(self._bound, "done"):
            try:
                os.sched_setaffinity(0, self._cpus)  # of this thread alone
            except OSError as error:
                raise DeviceError(
                    f"split_guidance: this process may not use processors {list(self._cpus)} any "
                    f"more: {error.strerror}."
                ) from None
            self._bound.done = True
        return job()


def do_at_once(jobs: Sequence[tuple[SplitWorker, Callable[[], _T]]]) -> list[_T]:
    """Have each worker do its job, and return when all are done, whatever happens meanwhile.

    Raises:
        Exception: of the first job that failed. A signal's is raised once nothing runs any more.
    """
    futures: list[Future[_T]] = []
    try:
        for worker, job in jobs:
            futures.append(worker.submit(job))
    finally:
        _outlast(futures)
    return [future.result() for future in futures]


def _outlast(futures: Sequence[Future[_T]]) -> None:
    interruption: BaseException | None = None
    while True:
        try:
            wait(futures)
            break
        except BaseException as error:  # of a signal's handler; the jobs take no longer than a step
            interruption = error
    if interruption is not None:
        raise interruption
