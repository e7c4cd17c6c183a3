"""Values computed from parameters, cached until the parameters change."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import RLock
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastglow.errors import FastglowError
from fastglow.kernels.backend import traced
from fastglow.kernels.launch import uncompiled

Value = TypeVar("Value")

_unseen_writes = 0
"""Number of optimizer steps and refreshes so far: parameters may have changed without incrementing their `_version`."""


@cache
def _watch_optimizers() -> None:
    """Fused kernels, including PyTorch's, do not increment a parameter's `_version`."""

    def after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        global _unseen_writes
        counts = type(optimizer).__module__.startswith("torch.optim.")
        if not counts or any(group.get("fused") for group in optimizer.param_groups):
            _unseen_writes += 1

    register_optimizer_step_post_hook(after_step)


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """All of `module.parameters()`; shared ones more than once.

    At every call of a model, Module.parameters() would cost more than launching its kernels.
    """
    found: list[nn.Parameter] = []
    modules: list[nn.Module | None] = [module]
    while modules:
        one = modules.pop()
        if one is not None:
            found += (parameter for parameter in one._parameters.values() if parameter is not None)
            modules += one._modules.values()
    return found


@dataclass(frozen=True)
class _Entry(Generic[Value]):
    key: object
    values: dict[Hashable, Value]  # by settings: those of one must outlive a call with others, a graph may read them
    # Keeps the memory at the key's addresses from being reused by other weights.
    storages: tuple[Tensor, ...]
    streams: set[torch.cuda.Stream]  # whose kernels may read the values


class ParameterCache(Generic[Value]):
    """One value for each of a few settings, recomputed when a parameter was written to, moved, cast or replaced.

    Any thread may ask, on any stream of the parameters' device, for a value that it only reads.

    Writes that PyTorch does not count need a `Refreshable.refresh`. A cache belongs to one module: copies and pickles
    of the module start with an empty one. Not for training: the value carries no gradient to the parameters.
    """

    def __init__(self) -> None:
        self._entry: _Entry[Value] | None = None
        self._lock = RLock()  # of two threads' values, a recorded graph would hold the one that is dropped

    def get(self, parameters: Sequence[Tensor], build: Callable[[], Value], *settings: Hashable) -> Value:
        """`build()`, or its last result for these settings if the parameters have not changed since. The replicas of a
        DataParallel have no parameters that could be seen to change, and share the cache."""
        return build() if traced() or not parameters else self._get(parameters, build, *settings)

    @uncompiled
    def _get(self, parameters: Sequence[Tensor], build: Callable[[], Value], *settings: Hashable) -> Value:
        _watch_optimizers()
        try:
            counts = [(x.data_ptr(), _version(x), x.dtype) for x in parameters]
        except RuntimeError:  # a FakeTensor has no memory
            return build()
        key = (counts, _unseen_writes)
        with self._lock:
            entry = self._entry
            if entry is None or entry.key != key:
                self._drop()
                entry = self._entry = _Entry(key, {}, tuple(x.detach() for x in parameters), set())
            stream = _stream_of(parameters)
            if settings not in entry.values:
                entry.values[settings] = build()
                if stream is not None:
                    _finish(stream)  # other streams will read it
            if stream is not None:
                entry.streams.add(stream)
            return entry.values[settings]

    def _drop(self) -> None:
        """Forgets the values, once nobody reads them: their memory may be written to at once."""
        for stream in self._entry.streams if self._entry else ():
            _finish(stream)
        self._entry = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are empty."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(ParameterCache()))


def _version(x: Tensor) -> int | None:
    """Number of writes; None: of an inference tensor, which does not count them."""
    return None if x.is_inference() else x._version


def _stream_of(parameters: Sequence[Tensor]) -> torch.cuda.Stream | None:
    """The current stream; None where there is none to wait for: on a CPU, and while the caller records it."""
    if not parameters or not parameters[0].is_cuda or torch.cuda.is_current_stream_capturing():
        return None
    return torch.cuda.current_stream(parameters[0].device)


def _finish(stream: torch.cuda.Stream) -> None:
    """Waits for a stream, unless it is being recorded, which that would end."""
    with torch.cuda.stream(stream):
        if not torch.cuda.is_current_stream_capturing():
            stream.synchronize()


class Refreshable(nn.Module):
    """A module with a `ParameterCache`, or with parts that have one."""

    def _load_from_state_dict(self, *args: Any, **kw: Any) -> None:
        super()._load_from_state_dict(*args, **kw)
        if any(x.is_inference() for x in parameters_of(self)):
            self.refresh()

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script calls first, whose own errors name lines of ours, and no remedy."""
        raise FastglowError(
            f"torch.jit.script cannot compile fastglow's {type(self).__name__}: leave that line out, "
            "or compile NVIDIA's class with this state_dict"
        )

    def refresh(self) -> None:
        """Makes inference fold, normalise and invert the weights again: those of every model in this process.

        Training steps, `load_state_dict`, `.to()`, new parameters and in-place changes are detected without it. Call
        it after writes that PyTorch does not count: through `parameter.data`, through a NumPy array, DLPack tensor or
        storage that shares their memory, or by a replayed CUDA graph; and after all writes but the whole model's
        `load_state_dict` to weights that were made under torch.inference_mode. Then also make a new `Denoiser`.
        """
        global _unseen_writes
        _unseen_writes += 1
