"""Fair queue: jobs wait by owner, and owners take turns by the work that was done for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from sdengine.serving.jobs import Job


class Full(Exception):
    """Report that no more may wait, all together or of one owner."""


class FairQueue:
    """Jobs that wait. Safe in several threads.

    Whoever had least work done goes first; one who comes back after a pause begins level with
    those who are there, so that nobody saves turns up.

    Args:
        most: jobs that may wait.

    Source: start-time fair queueing (Goyal, Vin, Cheng 1996), with the work of a job as its length.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, deque[Job]] = {}
        self._done: dict[str, float] = {}  # virtual work by owner
        self._now = 0.0
        self._condition = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def waiting_of(self, owner: str) -> int:
        """Return how many jobs of an owner wait."""
        return len(self._waiting.get(owner, ()))

    def check_room(self, owner: str, most_of_owner: int) -> None:
        """Refuse one more job of an owner.

        Raises:
            Full: there is no place.
        """
        if len(self) >= self._most or self.waiting_of(owner) >= most_of_owner:
            raise Full

    def put(self, job: Job, most_of_owner: int) -> None:
        """Let a job wait.

        Raises:
            Full: there is no place.
        """
        with self._condition:
            self.check_room(job.owner, most_of_owner)
            if job.owner not in self._waiting:
                self._waiting[job.owner] = deque()
                self._done[job.owner] = max(self._done.get(job.owner, 0.0), self._now)
            self._waiting[job.owner].append(job)
            self._condition.notify()

    def take(self) -> Job | None:
        """Return the next job, waiting for one; None once the queue is closed."""
        with self._condition:
            while not self._waiting and not self._closed:
                self._condition.wait()
            if self._closed:
                return None
            owner = min(self._waiting, key=lambda name: self._done[name])
            return self._taken(owner, self._waiting[owner][0])

    def take_alike(self, accepts: Callable[[Job], bool]) -> Job | None:
        """Return the first waiting job that is accepted, in the order of turns, or None."""
        with self._condition:
            for job in self._in_order():
                if accepts(job):
                    return self._taken(job.owner, job, is_turn=False)
        return None

    def remove(self, job: Job) -> bool:
        """Let a job no longer wait; False where it did not."""
        with self._condition:
            line = self._waiting.get(job.owner)
            if line is None or job not in line:
                return False
            line.remove(job)
            if not line:
                del self._waiting[job.owner]
            return True

    def position(self, job: Job) -> int | None:
        """Return how many jobs go before one; None of one that does not wait."""
        with self._condition:
            for number, one in enumerate(self._in_order()):
                if one is job:
                    return number
        return None

    def work(self) -> float:
        """Return the work of all jobs that wait."""
        with self._condition:
            return sum(job.work for line in self._waiting.values() for job in line)

    def close(self) -> list[Job]:
        """Have `take` return None from now on; return the jobs that still waited."""
        with self._condition:
            self._closed = True
            left = [job for line in self._waiting.values() for job in line]
            self._waiting.clear()
            self._condition.notify_all()
            return left

    def _taken(self, owner: str, job: Job, *, is_turn: bool = True) -> Job:
        line = self._waiting[owner]
        line.remove(job)
        if not line:
            del self._waiting[owner]
        if is_turn:  # what is run beside another one's turn puts nobody back
            self._now = max(self._now, self._done[owner])
        self._done[owner] += job.work
        if not self._waiting:  # nobody is behind anybody
            level = max(self._done.values())
            self._done = {}
            self._now = level
        return job

    def _in_order(self) -> Iterator[Job]:
        """Yield the jobs as they would be taken if no other came."""
        left = {owner: deque(line) for owner, line in self._waiting.items()}
        done = dict(self._done)
        while left:
            owner = min(left, key=lambda name: done[name])
            job = left[owner].popleft()
            done[owner] += job.work
            if not left[owner]:
                del left[owner]
            yield job
