"""The rounding errors of PyTorch's operations on any processor, as a bound for those of the kernels.

The error of a single PyTorch result depends on luck (a short sum may be exact) and on the processor (its instruction
set determines the order of sums). So the operations run several times with random errors: each is computed in float64
and then moved up or down by the possible error of rounding to its dtype. The error of a sum scales with the sum of the
absolute values of its terms, not with the result.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_flatten, tree_map, tree_unflatten

from fastglow.kernels.operators import run_inside

RUNS = 16

_SUMS = set(
    "add sub rsub sum mean cumsum mm addmm bmm baddbmm mv addmv dot linear matmul convolution convolution_backward "
    "col2im unfold_backward index_add scatter_add embedding_dense_backward".split()
)
"""Sums of operands or of products: on absolute values, they give the sum of the absolute terms."""

_EXACT = set(
    "_pack_padded_sequence _unsafe_view "
    "abs amax amin bernoulli cat clamp clamp_max clamp_min clone constant_pad_nd copy diag_embed diagonal_backward "
    "embedding empty empty_like empty_strided eye fill flip full full_like gather im2col index index_put index_select "
    "lift_fresh masked_fill max maximum min minimum neg new_empty new_empty_strided new_full new_ones new_zeros ones "
    "ones_like rand rand_like randn randn_like relu repeat roll scatter select_backward select_scatter sign "
    "slice_backward slice_scatter stack threshold_backward tril triu unsafe_split where zero zeros zeros_like".split()
)
"""These move or select values, without arithmetic."""

_ROUNDED = set("_to_copy div mul reciprocal sqrt".split())
"""Correctly rounded on every processor."""

# All others are functions (exp, tanh) with a rounded operand, accurate to two units in the last place (ulps).
_FUNCTION_ULPS = 4


def perturbed(call: Callable[[], Any], n_runs: int = RUNS) -> Any:
    """The results of `call()` from several runs with random rounding errors, stacked in a new first dimension.

    Args:
        call: runs PyTorch's operations and their gradients; deterministic except for rounding.
        n_runs: fewer are enough where the maximum is over many elements.
    """
    runs = []
    for seed in range(n_runs):
        with _Rounding(seed):
            leaves, structure = tree_flatten(call())
        runs.append(leaves)
    results = [
        torch.stack([x.detach() for x in xs]) if isinstance(xs[0], Tensor) else xs[0] for xs in zip(*runs, strict=True)
    ]
    return tree_unflatten(results, structure)


class _Rounding(TorchDispatchMode):
    """Adds random errors from a seed to operations below float64, also in backward passes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "fastglow":
            return run_inside(self, function, args, kwargs)
        name = function._schema.name.removeprefix("aten::")
        written = function._schema.is_mutable
        name = name.removesuffix("_") if written else name
        is_view = any(x.alias_info is not None and not x.alias_info.is_write for x in function._schema.returns)
        if is_view or name in _EXACT or not tree_any(_is_rounded, (args, kwargs)) or _is_exact_factor(name, args):
            return function(*args, **kwargs)
        # Before an in-place operation overwrites its operands.
        wide_args, wide_kwargs = tree_map(_widened, (args, {k: v for k, v in kwargs.items() if k != "out"}))
        results = function(*args, **kwargs)
        if not tree_any(_is_rounded, results):
            return results
        if name == "_to_copy" and results.dtype.itemsize >= args[0].dtype.itemsize:
            return results
        exactly = getattr(torch.ops.aten, name) if written else function
        if name not in _ROUNDED:
            wide_args = tree_map(lambda x: self.operand(name, x), wide_args)
        exact = tree_flatten(exactly(*wide_args, **wide_kwargs))[0]
        inner = _inner_errors(name, exact, wide_args, wide_kwargs, exactly)
        for result, truth, error in zip(tree_flatten(results)[0], exact, inner, strict=True):
            if truth is None:  # a gradient that is not needed
                continue
            if _is_rounded(result):
                # Half of the last rounding error is random; copying into the result adds the other half.
                truth = truth + error * self.signs(truth) + _unit(result.dtype) / 2 * truth.abs() * self.signs(truth)
            result.copy_(truth)
        return results

    def operand(self, name: str, x: Any) -> Any:
        """The operand, with the error that the operation may make when it reads it."""
        if not isinstance(x, Tensor) or not x.is_floating_point() or not x.numel():
            return x
        if name.startswith(("linalg_", "_linalg_")):  # backward stable for the matrix, not per element
            return x + _unit(torch.float32) * x.abs().amax(dim=(-2, -1)[-x.dim() :], keepdim=True) * self.signs(x)
        unit = _unit(torch.float32)
        if name in _SUMS:
            unit = 2.0**-11 if x.is_cuda and torch.backends.cuda.matmul.allow_tf32 else 0.0
        return x + unit * x * self.signs(x) if unit else x

    def signs(self, x: Tensor) -> Tensor:
        """Random -1 or 1."""
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        bits = torch.randint(0, 2, x.shape, generator=self.generators[x.device], device=x.device)
        return 2.0 * bits.to(x.dtype) - 1.0


def _inner_errors(name: str, exact: list, args: Any, kwargs: Any, exactly: Callable) -> list:
    """Bounds of the errors inside an operation, one tensor per result; sums are in float32."""
    unit = 0.0 if name in _ROUNDED else _FUNCTION_ULPS * _unit(torch.float32)
    if name in _SUMS:
        sum_of = torch.ops.aten.add if name in ("sub", "rsub") else exactly
        args, kwargs = tree_map(lambda x: x.abs() if isinstance(x, Tensor) else x, (args, kwargs))
        exact, unit = tree_flatten(sum_of(*args, **kwargs))[0], _unit(torch.float32)
    return [x if x is None else unit * x.abs() for x in exact]


def _unit(dtype: torch.dtype) -> float:
    """Unit roundoff: half the distance from 1 to the next value."""
    return torch.finfo(dtype).eps / 2


def _is_rounded(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 and not x.is_meta


def _widened(x: Any) -> Any:
    if isinstance(x, torch.dtype):
        return torch.float64 if x.is_floating_point else x
    return x.double() if _is_rounded(x) else x


def _is_exact_factor(name: str, args: tuple) -> bool:
    """Whether the operation multiplies by a power of two, as uniform noise does: no rounding."""
    if name != "mul" or isinstance(args[1], Tensor) and args[1].dim():
        return False
    factor = float(args[1])
    return math.isfinite(factor) and abs(math.frexp(factor)[0]) == 0.5
