"""Starts the processes of a run on this machine with torchrun."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import torch

from fastglow.errors import FastglowError

from .interruption import STOPPING
from .ranks import LAUNCHER, status_of

ALL = "all"


def count_processes(gpus: str, device: str) -> int:
    """How many processes `--gpus` asks for: a number, or `ALL` GPUs of this machine.

    Raises:
        FastglowError: not a number, or more than this machine's GPUs.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == ALL and available and device != "cpu":
        return available
    if not gpus.isdecimal() or not int(gpus):
        remedy = "pass --gpus N --device cpu" if gpus == ALL else "pass a number, or all"
        raise FastglowError(f"gpus={gpus} asks for none of this machine's {available} GPUs: {remedy}")
    n = int(gpus)
    if device != "cpu" and n > available:
        raise FastglowError(
            f"gpus={n} must be at most this machine's {available} GPUs; --device cpu runs {n} processes without any"
        )
    return n


def check_launched(gpus: str, device: str) -> None:
    """Whether `--gpus`, if given, agrees with the number of processes that torchrun started on this machine.

    Raises:
        FastglowError: it does not.
    """
    started = os.environ.get("LOCAL_WORLD_SIZE")
    if gpus and started and count_processes(gpus, device) != int(started):
        raise FastglowError(f"gpus={gpus}, but torchrun started {started} processes on this machine: leave out --gpus")


def launch(arguments: Sequence[str], processes: int, max_restarts: int) -> None:
    """Runs `fastglow ARGUMENTS` in several processes and waits for them.

    SIGINT and SIGTERM are passed on to them: they save and exit by themselves.

    Args:
        arguments: of the command.
        processes: on this machine.
        max_restarts: how often all are started again after one has failed.

    Raises:
        FastglowError: a process failed; the message is the error of the first that did.
    """
    # torch.distributed.run takes a second to import and is for this process only.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    # torchrun would give each process one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    options = {
        # As torchrun --standalone, which `config_from_args` does not know: several runs on a machine do not meet.
        "rdzv-backend": "c10d",
        "rdzv-endpoint": "localhost:0",
        "rdzv-id": uuid4().hex,
        "local-addr": "localhost",
        "nproc-per-node": processes,
        "max-restarts": max_restarts,
    }
    config, command, command_arguments = config_from_args(
        parse_args([*(f"--{name}={value}" for name, value in options.items()), "-m", "fastglow", *arguments])
    )
    if "signals_to_handle" in [field.name for field in fields(LaunchConfig)]:
        # torchrun would pass these on too, but wait 30 seconds only before it kills, and then report a failure.
        config.signals_to_handle = "SIGHUP,SIGQUIT"
    try:
        with _leaving_nothing_behind(), _passing_on_signals():
            elastic_launch(config, command)(*command_arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A process that could record its error has it as a dictionary.
        reason: Any = failure.message
        reason = reason["message"] if isinstance(reason, dict) else reason
        raise FastglowError(f"rank {rank}: {reason.removeprefix('FastglowError: ')}") from None
    except SignalException as error:
        raise FastglowError(str(error)) from None


@contextmanager
def _leaving_nothing_behind() -> Iterator[None]:
    """Kills the processes that an exception leaves behind. They know of this one, and end if it is killed.

    torchrun ends those that it knows of. An exception that a signal raises while it starts them, such as those of
    `_passing_on_signals`, comes before it knows of any.
    """
    before = set(_children())
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    except BaseException:
        for child in set(_children()) - before:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        raise
    finally:
        del os.environ[LAUNCHER]


@contextmanager
def _passing_on_signals() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM go to the processes that this one has started, once to each.

    While one of them has not begun to train, nothing is to be saved: the block ends with torchrun's exception. The
    signal would end that process only, and torchrun would start it again.
    """
    from torch.distributed.elastic.multiprocessing import api

    informed: set[int] = set()

    def pass_on(number: int, frame: FrameType | None) -> None:
        children = _children()
        if not children or not all(child in informed or _catches(child, signal.SIGTERM) for child in children):
            # A starting Python may lose SIGINT.
            name = signal.Signals(number).name
            raise api.SignalException(f"stopped by {name} before training began: nothing to save", signal.SIGTERM)
        for child in set(children) - informed:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(child, number)
        informed.update(children)

    def handle(signum: int, frame: FrameType | None) -> None:
        (pass_on if signum in STOPPING else of_torch)(signum, frame)

    previous = {number: signal.signal(number, pass_on) for number in STOPPING}
    # Versions without `signals_to_handle` make this their handler whenever they have started the processes.
    of_torch, api._terminate_process_handler = api._terminate_process_handler, handle
    try:
        yield
    finally:
        api._terminate_process_handler = of_torch
        for number, handler in previous.items():
            signal.signal(number, handler)


def _catches(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal; of those that have ended, nobody needs to know."""
    try:
        status = Path(f"/proc/{process}/status").read_text(errors="replace")
    except OSError:
        return True
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return values["State"].startswith("Z") or bool(int(values["SigCgt"], 16) >> (number - 1) & 1)


def _children() -> list[int]:
    """Process ids of the children of this process."""
    children = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(status_of(int(path.name))[1])
        except OSError:
            continue  # it has just ended
        if parent == os.getpid():
            children.append(int(path.name))
    return children
