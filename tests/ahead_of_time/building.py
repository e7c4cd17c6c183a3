"""Building blocks of the cases of all operations: meta tensors, precisions and calls.

With the options of the published models, each kernel is compiled with every launch configuration on every architecture;
with other options, with the configuration picked for a large problem, in few precisions and architectures.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .reports import ARCHITECTURES, Case

FLOAT32 = dict.fromkeys(ARCHITECTURES, ("float32",))
TF32 = dict.fromkeys(ARCHITECTURES, ("tf32",))
BFLOAT16 = dict.fromkeys(ARCHITECTURES, ("bfloat16",))
DTYPES = dict.fromkeys(ARCHITECTURES, ("float32", "float16", "bfloat16"))
# To save minutes, precisions with nearly the same code alternate between architectures: float16 and bfloat16 differ in
# instruction names only, and products without tensor cores are the same on all architectures.
ALTERNATING = {80: ("float32", "float16"), 90: ("float32", "bfloat16"), 100: ("float32", "float16")}
ALTERNATING_PRODUCTS = {80: ("float32", "tf32", "float16"), 90: ("tf32", "bfloat16"), 100: ("tf32", "float16")}
ONE = {90: ("bfloat16",)}

SWEPT = {"precisions": DTYPES, "swept": ALTERNATING}
SWEPT_FLOAT32 = {"precisions": FLOAT32, "swept": FLOAT32}
SWEPT_PRODUCTS = {"precisions": ALTERNATING_PRODUCTS, "swept": ALTERNATING_PRODUCTS}


def meta_constant(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_leaf(dtype: torch.dtype, *shape: int) -> Tensor:
    return meta_constant(dtype, *shape).requires_grad_(torch.is_grad_enabled())


def in_channels_last(x: Tensor) -> Tensor:
    """[B, C, T] -> the same values, channels-last in memory; still a leaf."""
    return x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(x.requires_grad)


def run_backward(*outputs: Tensor | None) -> None:
    outputs = [output for output in outputs if output is not None and output.requires_grad]
    if outputs:
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])


def make_case(
    tensor_cores: Mapping[str, str],
    call: Callable[..., None],
    name: str,
    *arguments,
    precisions: Mapping[int, tuple[str, ...]] = ONE,
    swept: Mapping[int, tuple[str, ...]] | None = None,
    **options,
) -> Case:
    """`call(dtype, *arguments, **options)`; `tensor_cores` as in `Case`."""

    def run(dtype: torch.dtype) -> None:
        call(dtype, *arguments, **options)

    name = f"{call.__name__.removeprefix('_')}, {name}"
    return Case(name, run, precisions, swept or {}, tensor_cores)
