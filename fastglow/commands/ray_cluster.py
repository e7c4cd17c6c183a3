"""Reaches or starts a Ray cluster, without Ray's messages, and finds how many workers it has room for."""

import importlib.util
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from fastglow.errors import FastglowError

LOCAL = "local"
"""Ray's own word for a cluster that is started here and ends with the process."""

# Unless the user has chosen otherwise, clusters that are started here send no statistics to Ray's makers, and what Ray
# says of lost workers, lines of this pattern, does not get between the reports on standard output.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}

# That a worker with its own torch and a voice may need.
_MEMORY = 1 << 30


class Cluster(NamedTuple):
    """The cluster that is to speak.

    Attributes:
        address: as `ray.init` takes it; `LOCAL`: one that is started.
        workers: to be had; None: as many as there is room for.
    """

    address: str
    workers: int | None


class Room(NamedTuple):
    """What `ray.remote` takes for each of so many workers."""

    workers: int
    num_cpus: float
    num_gpus: float


def require_ray() -> None:
    """To be called before Ray is imported, which reads `SETTINGS`.

    Raises:
        FastglowError: Ray is not installed.
    """
    for name in ("ray", "pyarrow"):  # which ray[data] brings
        if importlib.util.find_spec(name) is None:
            raise FastglowError(f"--ray needs the package {name}: pip install 'fastglow[ray]'")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Inside, `ray` is connected to the cluster; a program that is connected already stays so.

    Raises:
        FastglowError: the cluster cannot be reached or started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    cpus = None
    if cluster.address == LOCAL and cluster.workers is not None:
        cpus = max(cluster.workers, len(os.sched_getaffinity(0)))
    _check_answers(cluster.address)
    with _same_signals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(
                cluster.address, num_cpus=cpus, include_dashboard=False if cluster.address == LOCAL else None,
                log_to_driver=False, logging_level=logging.CRITICAL,
            )  # fmt: skip
        except Exception as error:
            what = "start Ray here" if cluster.address == LOCAL else f"reach a Ray cluster at {cluster.address}"
            raise FastglowError(f"cannot {what}: {last_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def room(cluster: Cluster, device: str | None, nodes: Sequence[dict[str, float]]) -> Room:
    """How many workers the nodes have room for: one for each GPU, or if there is none for each CPU.

    Args:
        cluster: asks for so many workers.
        device: as `--device`.
        nodes: the resources of each.

    Raises:
        FastglowError: the device is a GPU, and there is none, or not one that a worker can have.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    kind, _, index = (device or ("cuda" if gpus else "cpu")).partition(":")
    if kind == "cuda":
        if int(index or 0):
            raise FastglowError(f"device={device}: each worker has one GPU, and calls it cuda:0: use --device cuda")
        if not gpus:
            raise FastglowError(f"device={device}, and the Ray cluster has no GPU: use --device cpu")
        return Room(cluster.workers or gpus, 1, 1)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if cluster.workers is None:
        room = sum(min(n, int(node.get("memory", 0)) // _MEMORY) for n, node in zip(cpus, nodes, strict=True))
        return Room(max(1, room), 1, 0)
    # The most threads that as many workers can have on these nodes.
    threads = next((k for k in range(max(cpus), 1, -1) if sum(n // k for n in cpus) >= cluster.workers), 1)
    return Room(cluster.workers, threads, 0)


def last_line(error: BaseException) -> str:
    """What an error of Ray says, without the traceback that is part of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _check_answers(address: str) -> None:
    """Raises FastglowError if nobody listens at HOST:PORT, for which Ray takes two minutes and writes many lines."""
    match = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
    if match is None:  # a word, such as auto
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FastglowError(f"cannot reach a Ray cluster at {address}: {reason}") from error


@contextmanager
def _same_signals() -> Iterator[None]:
    """Ray takes over signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
