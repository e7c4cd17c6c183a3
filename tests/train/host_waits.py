"""Finds on a CPU where a program would make the host wait for a GPU: it reads data that the GPU computed."""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastglow.errors import FastglowError

READING = {
    *("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "nonzero_static", "masked_select", "argwhere"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave", "allclose"),
}
"""ATen's operations that read the device's data on the host, or whose result's shape depends on it."""

METHODS = {
    *("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"),
    *("pin_memory", "nonzero"),
}
"""Of tensors, in Python: ATen does not hear of some of them on a CPU."""


class HostWait(FastglowError):
    pass


class _Device:
    """Which memory counts as a GPU's, by address: that of the tensors named, and of all that is computed from it."""

    def __init__(self):
        self.addresses = set()

    def holds(self, value) -> bool:
        return isinstance(value, Tensor) and _address(value) in self.addresses

    def put(self, tensors) -> None:
        self.addresses.update(_address(tensor) for tensor in tensors if tensor.numel())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Operations(TorchDispatchMode):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        if function is torch.ops.aten.lift_fresh.default:  # of torch.tensor: comes from the host
            self.device.addresses -= {_address(x) for x in inputs}
        on_device = any(map(self.device.holds, inputs))
        name = function._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None
        )
        if on_device and (masks or name in READING):
            raise HostWait(f"{function} reads what the device computed")
        outputs = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.numel()]
        if name == "_pack_padded_sequence":
            made, sizes = made[:1], made[1]  # the batch sizes are on the CPU, as the lengths that it takes
            self.device.addresses.discard(_address(sizes))
        written = [x for x in inputs if x.numel()] if function._schema.is_mutable else []
        if on_device:
            self.device.put(made + written[:1])
        else:  # the memory may have been another tensor's before
            aliased = {_address(x) for x in inputs}
            self.device.addresses -= {_address(x) for x in made} - aliased
        return outputs


class _Methods(TorchFunctionMode):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in METHODS and args and self.device.holds(args[0]):
            raise HostWait(f"Tensor.{name} reads what the device computed")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_host_waits(*tensors):
    """In the block, reading what is computed from `tensors` is an error. Yields a function that adds tensors."""
    device = _Device()
    device.put(tensors)
    with _Operations(device), _Methods(device):
        yield device.put
