"""Everything that a checkpoint file holds, as plain data and tensors: for what is resumed from, not only its model."""

from __future__ import annotations

from typing import Any

import torch

from fastglow.errors import FastglowError

from .containers import Container
from .unpickling import Inert, PickledTensor, damaged, show

_MAX_DEPTH = 50
_SCALARS = (str, bytes, int, float, complex, type(None), torch.dtype)


def read_tree(container: Container) -> Any:
    """The object that was saved, its tensors on the CPU; what stands in it several times is one object.

    Raises:
        FastglowError: damaged, or something in it is neither plain data nor a tensor.
    """
    tensors: dict[int, PickledTensor] = {}
    _collect(container.top, tensors, set(), _MAX_DEPTH)
    read = container.read_all({str(key): tensor for key, tensor in tensors.items()})
    return _build(container.top, {int(key): tensor for key, tensor in read.items()})


def _collect(node: Any, tensors: dict[int, PickledTensor], seen: set[int], depth: int) -> None:
    """Finds the tensors, and refuses what is neither data nor a tensor. Looks into each container once."""
    if isinstance(node, PickledTensor):
        tensors[id(node)] = node
    elif not isinstance(node, (dict, list, tuple)):
        if not isinstance(node, _SCALARS):
            kind = node.class_name if isinstance(node, Inert) else type(node).__name__
            raise FastglowError(f"holds a {show(kind)}: only numbers, text, lists, dictionaries and tensors are read")
    elif id(node) not in seen:
        if depth == 0:
            raise damaged(f"containers lie more than {_MAX_DEPTH} deep in each other")
        seen.add(id(node))
        if isinstance(node, dict) and not all(isinstance(key, _SCALARS) for key in node):
            raise damaged("a dictionary's key is neither text nor a number")
        for part in node.values() if isinstance(node, dict) else node:
            _collect(part, tensors, seen, depth - 1)


def _build(node: Any, built: dict[int, Any]) -> Any:
    """`built`: what stands for the nodes that are done, by their id; each way from one to itself leads over a list or
    dictionary, which are entered before their parts."""
    if id(node) in built:
        return built[id(node)]
    if isinstance(node, dict):
        result = built[id(node)] = {}
        result.update((key, _build(value, built)) for key, value in node.items())
    elif isinstance(node, list):
        result = built[id(node)] = []
        result.extend(_build(part, built) for part in node)
    elif isinstance(node, tuple):
        result = built[id(node)] = tuple(_build(part, built) for part in node)
    else:
        result = node
    return result
