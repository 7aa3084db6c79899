"""Store of jobs: those that are on their way, and for a while those that are over."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from sdengine.errors import ConfigError
from sdengine.serving.jobs import Job
from sdengine.serving.limits import Limits

_ID = re.compile(r"[A-Za-z0-9()_.:-]{1,100}")


class JobStore:
    """Jobs by their ids; old ones go by number, bytes and time.

    Args:
        limits: say of how many results clients may still ask for.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jobs: dict[tuple[str, str], Job] = {}  # by owner and id, which owners may choose

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Keep a job.

        Raises:
            ConfigError: its id is not acceptable, or that of a job that is not over.
        """
        if not _ID.fullmatch(job.id):
            accepted = "up to 100 letters, digits and ()_.:-"
            raise ConfigError.for_field("id of the task", job.id, accepted)
        key = job.owner, job.id
        known = self._jobs.get(key)
        if known is not None and not known.is_over:
            hint = "Leave it out, and one is made."
            raise ConfigError.for_field("id of the task", job.id, "one that is not in use", hint)
        self._jobs.pop(key, None)
        self._jobs[key] = job
        self._tidy()

    def get(self, job_id: str, owner: str) -> Job | None:
        """Return an owner's job; None where there is none, or it is somebody else's."""
        self._tidy()
        return self._jobs.get((owner, job_id))

    def of(self, owner: str) -> list[Job]:
        """Return an owner's jobs, the oldest first."""
        self._tidy()
        return [job for job in self._jobs.values() if job.owner == owner]

    def forget(self, job: Job) -> None:
        """Keep a job no longer."""
        if self._jobs.get((job.owner, job.id)) is job:
            del self._jobs[job.owner, job.id]

    def _tidy(self) -> None:
        of_owners: dict[str, list[Job]] = {}  # so that none drives out what another one waits for
        for job in self._jobs.values():
            if job.is_over:
                of_owners.setdefault(job.owner, []).append(job)
        oldest = time.time() - self._limits.keep_seconds
        for over in of_owners.values():
            # What has no pictures goes first.
            over.sort(key=lambda job: (job.result is not None, job.ended or 0.0))
            total, left = sum(map(_bytes_of, over)), len(over)
            for job in over:
                too_many = left > self._limits.keep_jobs or total > self._limits.keep_bytes
                if too_many or (job.ended or 0.0) < oldest:
                    total, left = total - _bytes_of(job), left - 1
                    del self._jobs[job.owner, job.id]


def _bytes_of(job: Job) -> int:
    """Return about what a job that is over holds."""
    arrays = () if job.result is None else job.result.arrays
    return sum(array.nbytes for array in arrays) + job.picture_bytes
