"""Activations that the backward pass computes again instead of storing them (gradient checkpointing)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import RLock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastglow.kernels.backend import transformed
from fastglow.kernels.launch import uncompiled


def recomputed(module: nn.Module, function: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
    """function(*args), which computes with `module`; its backward pass stores `args` only and calls it again, with the
    same random numbers. Running statistics and other buffers of the module change once."""
    if not torch.is_grad_enabled() or transformed():
        return function(*args)
    return _checkpoint(module, function, *args)


@uncompiled  # the compiler does not know the contexts
def _checkpoint(module: nn.Module, function: Callable[..., Tensor], *args: Tensor | None) -> Tensor:
    contexts = nullcontext(), _CopiedBuffers(module)
    return checkpoint(function, *args, use_reentrant=False, context_fn=lambda: contexts)


_copying = RLock()  # of two threads, one would take the other's copies for the buffers


class _CopiedBuffers:
    """`_with_copied_buffers` of a module, for every backward pass of a graph: each enters it again."""

    def __init__(self, module: nn.Module):
        self._module = module
        self._entered = ExitStack()

    def __enter__(self) -> None:
        self._entered.enter_context(_with_copied_buffers(self._module))

    def __exit__(self, *error: object) -> None:
        self._entered.close()


@contextmanager
def _with_copied_buffers(module: nn.Module) -> Iterator[None]:
    """Inside, the module writes to copies of its buffers."""
    with _copying:
        places = [(one._buffers, name) for one in module.modules() for name in one._buffers]
        before = [buffers[name] for buffers, name in places]
        try:
            for (buffers, name), buffer in zip(places, before, strict=True):
                buffers[name] = None if buffer is None else buffer.clone()
            yield
        finally:
            for (buffers, name), buffer in zip(places, before, strict=True):
                buffers[name] = buffer
