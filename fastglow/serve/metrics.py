"""What `/metrics` tells, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 30, 60, 120, 300)
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
_FACTORS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)


class Metrics:
    """Of one application.

    Args:
        n_active: gives the requests that are being worked on.
        n_waiting: gives the sentences that wait for the decoder.
    """

    def __init__(self, n_active: Callable[[], int], n_waiting: Callable[[], int]):
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "fastglow_requests",
            "Requests for speech by status: 499 for clients that left; refused ones have neither voice nor format.",
            ["voice", "format", "status"],
            registry=registry,
        )
        for name, help, count in (
            ("requests_active", "Requests that are being worked on.", n_active),
            ("sentences_waiting", "Sentences that wait for the decoder.", n_waiting),
        ):
            Gauge(f"fastglow_{name}", help, registry=registry).set_function(count)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"fastglow_{name}", help, registry=registry, buckets=buckets)

        self.batch_size = histogram("batch_size", "Sentences decoded together.", _BATCHES)
        self.first_audio = histogram("first_audio_seconds", "From a request to its first samples.", _SECONDS)
        self.total = histogram("request_seconds", "From a request to its last byte, of completed ones.", _SECONDS)
        self.real_time_factor = histogram(
            "real_time_factor", "Seconds of work and waiting for a second of speech.", _FACTORS
        )
        self.faults = Counter(
            "fastglow_faulty_sentences", "Sentences with a fault in each attempt.", ["fault"], registry=registry
        )
        self.audio = Counter("fastglow_audio_seconds", "Speech that was made.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
