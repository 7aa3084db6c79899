"""Metrics of a server, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_GAUGES = {
    "queue_length": "Requests that wait.",
    "running": "Requests that run now.",
    "body_bytes": "Bytes of bodies that are held.",
}


class Metrics:
    """What a server counts; a registry of its own, so that two of them do not mix."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sdengine_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"sdengine_{name}", text, labels, registry=registry, buckets=_SECONDS)

        self._requests = counter("http_requests", "HTTP requests.", "route", "method", "status")
        self._request_seconds = histogram("http_request_seconds", "Their time.", "route")
        self._jobs = counter("jobs", "Jobs that ended.", "status")
        self._images = counter("images", "Pictures made.")
        self._joined = counter("joined_jobs", "Jobs that were run together with others.")
        self._rejected = counter("rejected", "Requests that were refused.", "reason")
        self._queue_seconds = histogram("queue_seconds", "Time that jobs waited.")
        self._generate_seconds = histogram("generate_seconds", "Time of runs.")
        self._gauges = {
            name: Gauge(f"sdengine_{name}", text, registry=registry)
            for name, text in _GAUGES.items()
        }

    def watch(self, name: str, value: Callable[[], float]) -> None:
        """Have a gauge show what a function returns."""
        self._gauges[name].set_function(value)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an HTTP request; `route` is that of the server, never what a client wrote."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def rejected(self, reason: str) -> None:
        """Count a request that was refused."""
        self._rejected.labels(reason).inc()

    def waited(self, seconds: float) -> None:
        """Take note of how long a job waited."""
        self._queue_seconds.observe(seconds)

    def generated(self, seconds: float, images: int, jobs: int) -> None:
        """Take note of a run."""
        self._generate_seconds.observe(seconds)
        self._images.inc(images)
        if jobs > 1:
            self._joined.inc(jobs)

    def ended(self, status: str) -> None:
        """Count a job that is over."""
        self._jobs.labels(status).inc()

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)
