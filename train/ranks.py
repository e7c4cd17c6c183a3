"""The processes of a run, each a rank, as torchrun or another launcher starts them; one process is the plain case."""

import hashlib
import inspect
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastglow.devices import pick_device
from fastglow.errors import FastglowError

from .interruption import end_with_launcher
from .rendezvous import store_of_attempt

T = TypeVar("T")

RUN_ID = "TORCHELASTIC_RUN_ID"  # set by torchrun for the processes that it starts
LAUNCHER = "FASTGLOW_LAUNCHER"  # set by `launch`: its process id

# How long a process waits for the launcher to end it after the connection to another one broke.
SECONDS_TO_BE_ENDED = 60.0


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank, world_size: over all machines.
        local_rank: on this machine; picks the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, logs and bars."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world_size > 1

    def device(self, name: str) -> torch.device:
        """The named device; with several processes on GPUs, the GPU of this one's local rank.

        Raises:
            FastglowError: there is no such device, or several processes would share a GPU.
        """
        if not self.several:
            return pick_device(name)
        if name in ("", "cuda") and torch.cuda.is_available():
            if self.local_rank >= torch.cuda.device_count():
                raise FastglowError(
                    f"this machine has {torch.cuda.device_count()} GPUs for more processes: start one for each"
                )
            torch.cuda.set_device(self.local_rank)  # before anything takes memory of another GPU
            return pick_device(f"cuda:{self.local_rank}")
        device = pick_device(name)
        if device.type != "cpu":
            raise FastglowError(f"device={name} is one GPU for {self.world_size} processes: pass --device cuda")
        return device

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes, the same bits in each; in place."""
        if self.several:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: T) -> T:
        """The first process's value."""
        values = [value]
        if self.several:
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        values: list[Any] = [value] * self.world_size
        if self.several:
            dist.all_gather_object(values, value)
        return values

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Replaces buffers, such as the running statistics of batch normalisation, by the first process's."""
        if self.several:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def parallel(self, model: nn.Module, accumulate: int) -> nn.Module:
        """The model to call in training: its backward pass leaves the mean gradient of all processes."""
        if not self.several:
            return model
        # Each process has its own batch statistics, as in the reference; `broadcast_buffers` serves validation. The
        # option was renamed in PyTorch 2.13.
        names = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        options: dict[str, Any] = {buffers: False}
        return DistributedDataParallel(
            model,
            device_ids=None,  # it would move the lengths that are meant to be on the CPU
            **options,
            gradient_as_bucket_view=True,
            # Every step runs the same operations. PyTorch records them in the first backward pass, which must
            # therefore not be one under no_sync.
            static_graph=accumulate == 1,
        )


ALONE = Ranks()


class Vote:
    """Whether any process wishes to stop. All learn it at the same time, and no GPU is waited for.

    The wishes travel between the hosts while a step is launched: a call returns what the call before it was about.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self._wishes = torch.zeros(1)
        self._exchange: dist.Work | None = None

    def __call__(self, wish: bool) -> bool:
        """Collective; whether any process wished it in the call before. One process alone needs no vote: False."""
        agreed = self.settle()
        if self.ranks.several:
            self._wishes = torch.tensor([float(wish)])
            self._exchange = dist.all_reduce(self._wishes, async_op=True)
        return agreed

    def settle(self) -> bool:
        """Ends the exchange in progress; whether any process wished it in the last call. Collective."""
        if self._exchange is None:
            return False
        self._exchange.wait()
        self._exchange = None
        return bool(self._wishes)


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Joins the processes that the environment describes, as torchrun sets it; leaves them when the block ends.

    With one process there is nothing to join. NCCL connects GPUs, gloo CPUs; gloo also carries what is not on a GPU.
    A process of torchrun ends with it, also if that is killed.

    Raises:
        FastglowError: the environment is incomplete.
    """
    try:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
    except ValueError as error:
        raise FastglowError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers ({error}): start with torchrun") from None
    if RUN_ID in os.environ:
        parent, launched_by = os.getppid(), os.environ.pop(LAUNCHER, "")  # not for what this process starts
        if launched_by and int(launched_by) not in _ancestors():
            os._exit(1)  # the launcher was killed while this process loaded PyTorch
        end_with_launcher(parent)
    if world_size == 1:
        yield ALONE
        return
    try:
        store, _, _ = next(dist.rendezvous("env://"))
    except ValueError as error:
        raise FastglowError(f"WORLD_SIZE={world_size} processes cannot connect: {error}: use torchrun") from error
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store_of_attempt(store, rank, world_size),
            rank=rank,
            world_size=world_size,
        )
        yield Ranks(rank, world_size, local_rank)
    except RuntimeError as error:
        if _lost_connection(error):
            # The process at the other end has failed, and its own error is the one to show. The launcher ends this
            # process once it has noticed.
            time.sleep(SECONDS_TO_BE_ENDED)
        raise
    dist.destroy_process_group()  # not after an error: others may not answer any more


def leave_process() -> NoReturn:
    """Ends a process of several without the end of Python, once its work is done.

    gloo's threads outlive the process group, which DistributedDataParallel never lets go of. One of them may still be
    releasing a tensor, for which it takes Python's lock; while Python ends, that aborts the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def launcher() -> str:
    """Names the torchrun process that started this one, and may start it again; empty without torchrun.

    Neither torchrun's count of restarts nor its run id tells whether a run was started again: each machine counts its
    own failures only, and people use one id for many runs.
    """
    if RUN_ID not in os.environ:
        return ""
    process = os.getppid()
    began = ""
    try:
        # A script between torchrun and this process has inherited the variable; torchrun itself has not.
        while f"\0{RUN_ID}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes():
            process = int(status_of(process)[1])
        began = status_of(process)[19]  # numbers are used again
    except OSError:
        pass
    name = f"{socket.gethostname()} {process} {began}"
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()  # checkpoints are published


def _ancestors() -> Iterator[int]:
    """Process ids: the parent, and so on. A script may stand between torchrun and this process."""
    process = os.getpid()
    with suppress(OSError):
        while process := int(status_of(process)[1]):
            yield process


def status_of(process: int) -> list[str]:
    """What /proc says of a process after its name, which is in parentheses and may contain anything: state, parent, ...

    Raises:
        OSError: it has ended.
    """
    return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _lost_connection(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text
