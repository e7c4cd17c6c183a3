"""Everything in a checkpoint file, as plain data and tensors: to resume training, which needs more than the model."""

from __future__ import annotations

from typing import Any

import torch

from fastglow.errors import FastglowError

from .containers import Container
from .records import Inert, PickledTensor, damaged, show

_MAX_DEPTH = 50
_SCALARS = (str, bytes, int, float, complex, type(None), torch.dtype)


def read_tree(container: Container) -> Any:
    """The saved object, its tensors on the CPU; shared parts stay shared.

    Raises:
        FastglowError: the file is damaged, or holds something other than plain data and tensors.
    """
    tensors: dict[int, PickledTensor] = {}
    _collect(container.top, tensors, set(), _MAX_DEPTH)
    read = container.read_all({str(key): tensor for key, tensor in tensors.items()})
    return _build(container.top, {int(key): tensor for key, tensor in read.items()})


def _collect(node: Any, tensors: dict[int, PickledTensor], seen: set[int], depth: int) -> None:
    """Collects the tensors and refuses anything other than data and tensors; enters each container once."""
    if isinstance(node, PickledTensor):
        tensors[id(node)] = node
    elif not isinstance(node, (dict, list, tuple)):
        if not isinstance(node, _SCALARS):
            kind = node.class_name if isinstance(node, Inert) else type(node).__name__
            raise FastglowError(f"holds a {show(kind)}: only numbers, text, lists, dictionaries and tensors are read")
    elif id(node) not in seen:
        if depth == 0:
            raise damaged(f"containers are nested more than {_MAX_DEPTH} deep")
        seen.add(id(node))
        if isinstance(node, dict) and not all(isinstance(key, _SCALARS) for key in node):
            raise damaged("a dictionary's key is neither text nor a number")
        for part in node.values() if isinstance(node, dict) else node:
            _collect(part, tensors, seen, depth - 1)


def _build(node: Any, built: dict[int, Any]) -> Any:
    """The result for `node`. `built` holds the results so far by the node's id.

    A cycle always passes through a list or dictionary; those are in `built` before their parts.
    """
    if id(node) in built:
        return built[id(node)]
    if isinstance(node, dict):
        mapping: dict[Any, Any] = {}
        built[id(node)] = mapping
        mapping.update((key, _build(value, built)) for key, value in node.items())
        return mapping
    if isinstance(node, list):
        parts: list[Any] = []
        built[id(node)] = parts
        parts.extend(_build(part, built) for part in node)
        return parts
    if isinstance(node, tuple):
        built[id(node)] = tuple(_build(part, built) for part in node)
        return built[id(node)]
    return node
