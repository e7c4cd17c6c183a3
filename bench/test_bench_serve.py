"""The service under load: 1, 8 and 32 clients, with batching and without.

A call answers a number of requests, which the clients send one after the other, each once it has its answer. The
services with and without batching (`--max-batch 1`) run side by side, and are loaded in turn, on a GPU too.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest

from fastglow import Synthesizer
from fastglow.kernels.cpu import fast_dtype
from fastglow.voices import DEFAULT_VOICE

from .serving import Answer, load, served
from .workload import FASTGLOW, INFERENCE, ORDINARY, Cost, Implementation, Workload, cases

TEXTS = (
    "Good morning.",
    "Yes, I can do that for you.",
    "Your timer has two minutes left.",
    "The train to the coast leaves at noon from platform nine.",
)
SEED = 1
RATE = 24000  # of "pcm", in Hz
BEGINNING = 6000  # samples, a quarter of a second
SLACK = 0.05  # of a length and an error, far from those of another text or seed

OPEN = ExitStack()  # the services
ANSWERS: dict[tuple[str, str], list[Answer]] = {}
"""Of the timed rounds, by workload and implementation."""


@dataclass(frozen=True)
class Serving(Workload):
    """`n_requests` by `clients` at a time."""

    clients: int
    n_requests: int
    texts: tuple[str, ...] = TEXTS
    small: bool = False

    op = "serve"
    directions = (INFERENCE,)
    dtype = fast_dtype()
    composed = True
    bounded = False
    in_turn = True

    @property
    def case(self) -> str:  # type: ignore[override]  # a field in other workloads
        return f"{'small-' * self.small}{self.clients}-clients"

    @property
    def name(self) -> str:
        return self.case

    @property
    def varies(self) -> bool:  # type: ignore[override]  # the same for others
        """Smoke tests start one service only."""
        return not self.small

    @property
    def requests(self) -> list[str]:
        return list(islice(cycle(self.texts), self.n_requests))

    def supports(self, implementation: str) -> bool:
        return implementation == FASTGLOW

    def shapes(self) -> dict[str, list[int]]:
        return {"text": [self.n_requests, round(statistics.mean(map(len, self.requests)))]}

    def samples(self, direction: str) -> int:
        return sum(len(library(text)) for text in self.requests)

    def audio_seconds(self, direction: str) -> float:
        return self.samples(direction) / RATE

    def cost(self, direction: str) -> Cost:
        """Not counted: nothing bounds reading, decoding, vocoding and the network alike."""
        return Cost(0, 0)

    def details(self) -> dict[str, Any]:
        return {"clients": self.clients, "requests": self.n_requests}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], None]:
        answers = ANSWERS[self.name, implementation.name] = []

        def run() -> None:
            answers.extend(self.answers(implementation))

        return run

    def answers(self, implementation: Implementation) -> list[Answer]:
        return load(address(implementation.name), [request(text) for text in self.requests], self.clients)

    def verify(self, implementation: Implementation, direction: str) -> float:
        """Each has the bits that the service gives its text alone, and those begin as the library's samples: sentences
        that are decoded together are rounded differently, and errors grow with the frames. The service is then warm."""
        spoken = {
            text: load(address(implementation.name), [request(text)], 1)[0].body for text in sorted(set(self.requests))
        }
        for text, answer in zip(self.requests, self.answers(implementation), strict=True):
            assert answer.body == spoken[text], f"{text!r} has other samples beside others than alone"
        return max(_error(text, body) for text, body in spoken.items())


def _error(text: str, body: bytes) -> float:
    """Of a service's samples, relative to the library's, at their beginning."""
    actual, expected = np.frombuffer(body, "<i2") / 32768, library(text)
    ratio = len(actual) / len(expected)
    assert abs(ratio - 1) < SLACK, f"{text!r} is {ratio:.3g} times as long as the library's"
    actual, expected = actual[:BEGINNING], expected[:BEGINNING]
    error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
    assert error < SLACK, f"{text!r} differs by {error:.2g} from the library's"
    return error


def request(text: str) -> dict:
    return {"model": "tts-1", "input": text, "voice": DEFAULT_VOICE, "response_format": "pcm", "seed": SEED}


@cache
def address(implementation: str) -> str:
    """Of the service, which is started at the first call."""
    return OPEN.enter_context(served(*(["--max-batch", "1"] if implementation == ORDINARY else [])))


@cache
def synthesizer() -> Synthesizer:
    return Synthesizer.from_voice(DEFAULT_VOICE)


@cache
def library(text: str) -> np.ndarray:
    """The library's samples of a text, at RATE, without the service's encoder; float32 [N]."""
    import soxr  # a machine that only runs kernels may lack it

    with closing(synthesizer().stream(text, seed=SEED)) as chunks:
        audio = np.concatenate(list(chunks))
    rounded = np.rint(audio * 32768).astype(np.float32) / 32768
    return soxr.resample(rounded, synthesizer().audio.sampling_rate, RATE)


def latencies(answers: list[Answer]) -> dict[str, float]:
    """Seconds to the first and the last byte: median, and what 95 % of the answers do not exceed."""
    found: dict[str, float] = {}
    for name in ("first", "last"):
        seconds = [getattr(answer, name) for answer in answers]
        found |= {f"{name}_median": float(np.median(seconds)), f"{name}_95": float(np.quantile(seconds, 0.95))}
    return found


WORKLOADS = [
    Serving(clients=1, n_requests=4),
    Serving(clients=8, n_requests=16),
    Serving(clients=32, n_requests=48),
    Serving(clients=2, n_requests=3, texts=("Hi.", "No."), small=True),
]


@pytest.fixture(scope="module", autouse=True)
def _stop_services() -> Iterator[None]:
    for package in ("uvicorn", "starlette", "prometheus_client"):
        pytest.importorskip(package)
    yield
    for cached in (address, library, synthesizer):
        cached.cache_clear()
    ANSWERS.clear()
    OPEN.close()


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_serve(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
    info = measure.benchmark.extra_info
    for one in [info, *info.get("in_turn", [])]:
        if answers := ANSWERS.get((workload.name, one.get("implementation", ""))):
            one["latency"] = latencies(answers)
