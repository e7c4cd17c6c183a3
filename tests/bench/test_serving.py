"""The clients that load the service, against a service of the test's own, and the table of the results."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from bench import environment, report, results, serving
from bench import test_bench_serve as benchmark_of_serve
from bench.serving import Answer, load
from bench.test_bench_serve import Serving, latencies
from bench.workload import FASTGLOW, INFERENCE, Implementation

from .conftest import benchmark

PAUSE = 0.2  # between an answer's first bytes and the rest


class Stub:
    """Answers each request with its input in capitals, in two chunks, of which the first comes in two parts."""

    def __init__(self, status="200 OK", cut=False):
        self.status, self.cut = status, cut
        self.n_connections = self.most_at_once = self.at_once = 0
        self.seen = []

    async def __call__(self, reader, writer):
        self.n_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
                await self.answer(json.loads(await reader.readexactly(length)), writer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async def answer(self, request, writer):
        self.seen.append(request["input"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        text = request["input"].upper().encode()
        if self.status == "200 OK":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(text), text[:1]))
            await asyncio.sleep(PAUSE)
            writer.write(text[1:] + b"\r\n" + (b"" if self.cut else b"2\r\n!!\r\n0\r\n\r\n"))
        else:
            body = b'{"error": {"message": "full"}}'
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (self.status.encode(), len(body), body))
        await writer.drain()
        self.at_once -= 1
        if self.cut:
            writer.close()


@contextmanager
def running(stub):
    """The stub's address."""
    loop, address = asyncio.new_event_loop(), []
    stop = asyncio.Event()
    ready = threading.Event()

    async def main():
        server = await asyncio.start_server(stub, "127.0.0.1", 0)
        address.append("http://{}:{}".format(*server.sockets[0].getsockname()))
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def requests(n):
    return [{"input": f"text {i}"} for i in range(n)]


@pytest.mark.parametrize("clients", [1, 3])
def test_answers_come_in_order_from_as_many_connections_as_clients(clients):
    with running(stub := Stub()) as address:
        start = time.perf_counter()
        answers = load(address, requests(5), clients)
        took = time.perf_counter() - start
    assert [answer.body for answer in answers] == [f"TEXT {i}!!".encode() for i in range(5)]
    assert sorted(stub.seen) == [f"text {i}" for i in range(5)]
    assert (stub.n_connections, stub.most_at_once) == (clients, clients)
    for answer in answers:
        assert 0 < answer.first <= answer.last - 0.9 * PAUSE and answer.last <= took


@pytest.mark.parametrize(
    ("stub", "message"),
    [(Stub("429 Too Many Requests"), r'429 .*"full"'), (Stub(cut=True), "the connection ended within the answer")],
)
def test_refused_and_incomplete_answers_fail(stub, message):
    with running(stub) as address, pytest.raises(AssertionError, match=message):
        load(address, requests(2), 1)


SERVICE = """
import signal, sys, time
print("fastglow: a remark", file=sys.stderr)
time.sleep(0.2)
print("fastglow: serving one, two at http://127.0.0.1:1234", file=sys.stderr, flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pause()
"""


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Puts a program in the place of `python -m fastglow`."""

    def command(program):
        (tmp_path / "fastglow.py").write_text(program)
        monkeypatch.setattr(environment, "ROOT", tmp_path)
        monkeypatch.delenv("PYTHONPATH", raising=False)

    return command


def test_a_service_is_started_and_ended(command):
    command(SERVICE)
    with serving.served("--max-batch", "1") as address:
        assert address == "http://127.0.0.1:1234"


def test_a_service_that_does_not_start_says_why(command):
    command("import sys; sys.exit('no such voice')")
    with pytest.raises(RuntimeError, match="serve --port 0 --max-batch 1 did not start: no such voice"):
        with serving.served("--max-batch", "1"):
            raise AssertionError("it has no address")


def test_a_service_that_ends_early_is_noticed(command):
    command(SERVICE.partition("signal.signal")[0])
    with pytest.raises(AssertionError, match="the service ended with code 0"):
        with serving.served():
            time.sleep(2)


def test_latencies():
    answers = [Answer(b"", i / 1000, i / 100) for i in range(1, 102)]
    assert latencies(answers) == pytest.approx(
        {"first_median": 0.051, "first_95": 0.096, "last_median": 0.51, "last_95": 0.96}
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (None, ""),
        ("load", "other samples beside others than alone"),
        ("sound", "differs by"),
        ("length", "times as long as the library's"),
    ],
)
def test_wrong_answers_are_found(monkeypatch, fault, message):
    samples = (np.sin(np.arange(24000) * 0.05) * 9000).astype("<i2")

    def answers(address, requests, clients):
        body = samples.copy()
        if fault == "load" and clients > 1:
            body[-1] += 1
        if fault == "sound":
            body[:3000] = body[3000:6000]
        return [Answer(body[: 12000 if fault == "length" else None].tobytes(), 0.1, 0.2) for _ in requests]

    monkeypatch.setattr(benchmark_of_serve, "load", answers)
    monkeypatch.setattr(benchmark_of_serve, "address", lambda implementation: "")
    monkeypatch.setattr(benchmark_of_serve, "library", lambda text: samples / 32768)
    workload, ours = Serving(clients=2, n_requests=5), Implementation(FASTGLOW)
    if fault is None:
        assert workload.verify(ours, INFERENCE) == 0
        assert workload.audio_seconds(INFERENCE) == 5
        return
    with pytest.raises(AssertionError, match=message):
        workload.verify(ours, INFERENCE)


def test_the_report_has_a_table_of_the_service(write_run):
    latency = {"first_median": 0.1, "first_95": 0.2, "last_median": 0.3, "last_95": 1.4}
    same = {"clients": 8, "requests": 16, "dtype": "float32"}
    off = {"implementation": "ordinary", "median": 8.0, "times_real_time": 5.0, "latency": latency | {"last_95": 2.5}}
    row = benchmark("serve/8-clients/inference", "fastglow", 4.0, times_real_time=10.123, latency=latency,
                    ratios={"ordinary": {"float32": [1.5, 2.0, 2.5]}}, **same)  # fmt: skip
    row["extra_info"]["in_turn"] = [row["extra_info"] | off]
    text = report.markdown(results.load([write_run([row])]))
    table = text[text.index("## The service under load") :]
    assert "| 8 | 16 | on | 10.1 | 100 | 200 | 300 | 1,400 | 2.00 (1.50 to 2.50) |" in table
    assert "| 8 | 16 | off | 5 | 100 | 200 | 300 | 2,500 | - |" in table
    assert "| serve/8-clients" not in text
