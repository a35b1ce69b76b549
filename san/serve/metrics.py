"""What the service counts, in Prometheus' format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32)


class ServeMetrics:
    """Counters of one service, in a registry of its own.

    Attributes:
        in_progress: requests that are being answered.
        batch_images: pictures per pass of the encoder; its sum counts all encoded pictures.
        segmentations: vocabularies applied to an image.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "san_requests", "Requests, by route and status; 499: the client has gone", ["route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "san_request_seconds", "Time from a request's head to its answer, by route", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.in_progress = Gauge("san_requests_in_progress", "Requests being answered", registry=self._registry)
        self.batch_images = Histogram(
            "san_batch_images", "Pictures per pass of the encoder", buckets=_BATCHES, registry=self._registry
        )
        self.segmentations = Counter("san_segmentations", "Vocabularies applied to an image", registry=self._registry)

    def observe_store(self, usage: Callable[[], tuple[int, int]]) -> None:
        """Report the kept images.

        Args:
            usage: returns their number and bytes.
        """
        Gauge("san_kept_images", "Images kept for further words", registry=self._registry).set_function(
            lambda: usage()[0]
        )
        Gauge("san_kept_bytes", "Memory of the kept images", registry=self._registry).set_function(lambda: usage()[1])

    def answered(self, route: str, status: int, start: float) -> None:
        """Count an answer.

        Args:
            route: the path of the route, not that of the request.
            status: HTTP status.
            start: `time.perf_counter()` at the request's beginning.
        """
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(time.perf_counter() - start)

    def text(self) -> bytes:
        """Return all values for a scraper."""
        return generate_latest(self._registry)
