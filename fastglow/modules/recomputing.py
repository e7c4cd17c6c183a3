"""Activations that the backward pass computes again instead of storing them (gradient checkpointing)."""

from collections.abc import Callable
from contextlib import nullcontext
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
    """Inside, the module writes to copies of its buffers. Entered by every backward pass of a graph."""

    def __init__(self, module: nn.Module):
        self._module = module
        self._originals: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []

    def __enter__(self) -> None:
        _copying.acquire()
        self._originals = [(one._buffers, *item) for one in self._module.modules() for item in one._buffers.items()]
        for buffers, name, buffer in self._originals:
            buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *error: object) -> None:
        for buffers, name, buffer in self._originals:
            buffers[name] = buffer
        self._originals = []
        _copying.release()
