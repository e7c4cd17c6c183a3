"""PyTorch's side of a call: its operations are recorded with their bytes and FLOPs, and large ones are not computed."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from fastglow.kernels.operators import run_inside

SMALL = 1 << 14
"""Operations on tensors of at most so many elements are computed: lengths, tables and scalars must be right."""

WITHOUT_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "set_",
    "_local_scalar_dense",
}
"""Operations that launch nothing on a GPU, besides views."""


class Operator(NamedTuple):
    """A PyTorch operation as one launch."""

    name: str
    tensors: tuple[tuple[int, int], ...]  # (address, bytes) of what it reads and writes
    flops: int  # of matrix products and convolutions


class Shapes(TorchDispatchMode):
    """Inside, large floating-point results have the right shape, strides and dtype, and any values."""

    def __init__(self, record: Callable[[Operator], None]) -> None:
        super().__init__()
        self._record = record

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        returns = [x.alias_info for x in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returns)
        given = list(_tensors((args, kwargs)))
        if func.namespace == "fastglow":
            return run_inside(self, func, args, kwargs)
        if is_view or name in WITHOUT_KERNEL:
            return func(*args, **kwargs)
        result = self._result(func, args, kwargs, given, returns)
        made = list(_tensors(result))
        touched = {id(x): x for x in (*given, *made)}.values()
        flops = 0
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            flops = int(count(*args, **kwargs, out_val=result))
        self._record(Operator(name, tuple((x.data_ptr(), _bytes(x)) for x in touched if x.numel()), flops))
        return result

    def _result(self, func, args, kwargs, given: list[Tensor], returns: list) -> Any:
        if all(x.numel() <= SMALL for x in given) and (given or not _is_random(func)):
            sizes = [a for a in args if isinstance(a, list | tuple)]
            if given or torch.Size(sizes[0] if sizes else ()).numel() <= SMALL:
                return func(*args, **kwargs)
        if any(not x.is_floating_point() for x in given) and all(x.numel() <= SMALL or _is_integer(x) for x in given):
            return func(*args, **kwargs)
        if any(alias is not None for alias in returns):  # in place, or with `out`
            written = [
                kwargs.get(a.name, args[i] if i < len(args) else None)
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            return written[0] if len(returns) == 1 else tuple(written)
        if not returns:  # the foreach operations in place
            return None
        if not given:  # a factory
            return func(*args, **kwargs)
        meta = func(*tree_map(_to_meta, args), **tree_map(_to_meta, kwargs))
        return tree_map(_from_meta, meta)


def _is_random(func) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _is_integer(x: Tensor) -> bool:
    return not x.is_floating_point()


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(tree) if isinstance(x, Tensor))


def _bytes(x: Tensor) -> int:
    """Distinct bytes: dimensions of stride 0 are read once."""
    elements = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        elements *= size if stride else 1
    return elements * x.itemsize


def _to_meta(x: Any) -> Any:
    if isinstance(x, Tensor):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return torch.device("meta") if isinstance(x, torch.device) else x


def _from_meta(x: Any) -> Any:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) if isinstance(x, Tensor) else x
