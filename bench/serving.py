"""`fastglow serve` in a process of its own, and clients that load it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch

from . import environment

_READY = "fastglow: serving "
_STARTED, _STOPPED = 120.0, 60.0  # seconds to wait for either
_READ_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        body: of the answer.
        first, last: seconds from sending the request to the first and the last byte of the body.
    """

    body: bytes
    first: float
    last: float


@contextmanager
def served(*options: str) -> Iterator[str]:
    """The address of a service with these options of the command. It has as many threads as this process."""
    command = [sys.executable, "-m", "fastglow", "serve", "--port", "0", *options]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=environment.ROOT, env=os.environ | threads, stderr=log)
        try:
            yield _address(process, command, log.fileno())
            assert process.poll() is None, f"the service ended with code {process.returncode}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOPPED)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen, command: Sequence[str], log: int) -> str:
    """What the service says once it is ready."""
    end = time.monotonic() + _STARTED
    while time.monotonic() < end:
        said = os.pread(log, 1 << 20, 0).decode(errors="replace")
        for line in said.splitlines(keepends=True):
            if line.startswith(_READY) and line.endswith("\n"):
                return line.split()[-1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{' '.join(command)} did not start: {said.strip()}")


def load(address: str, requests: Sequence[dict], clients: int) -> list[Answer]:
    """The answers to `POST /v1/audio/speech`, in order; each client sends the next request once it has an answer.

    Raises:
        AssertionError: a request was refused, or an answer is incomplete.
    """
    return asyncio.run(_load(address, requests, clients))


async def _load(address: str, requests: Sequence[dict], clients: int) -> list[Answer]:
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(requests))  # all clients take from it
    url = urlsplit(address)
    assert url.hostname and url.port
    work = [_client(url.hostname, url.port, waiting, answers) for _ in range(clients)]
    await asyncio.gather(*work)
    return [answers[i] for i in range(len(requests))]


async def _client(host: str, port: int, waiting: Iterable[tuple[int, dict]], answers: dict[int, Answer]) -> None:
    """One connection, kept for all of a client's requests."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for i, request in waiting:
            body = json.dumps(request).encode()
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            start = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answers[i] = await _answer(reader, start)
    finally:
        writer.close()
        await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, start: float) -> Answer:
    try:
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") != "chunked":
            text = await reader.readexactly(int(headers.get("content-length", 0)))
            raise AssertionError(f"{status}: {text.decode(errors='replace')}")
        assert status.split()[1] == "200", status
        body, first = bytearray(), 0.0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            # Its first bytes may come long before the rest.
            while size:
                part = await reader.read(min(size, _READ_AT_ONCE))
                assert part, "the connection ended within the answer"
                first = first or time.perf_counter() - start
                body += part
                size -= len(part)
            await reader.readexactly(2)
        await reader.readexactly(2)
    except asyncio.IncompleteReadError as error:
        raise AssertionError("the connection ended within the answer") from error
    return Answer(bytes(body), first, time.perf_counter() - start)
