"""Checks that the tests of several operations share: errors, launches, random numbers, and results against float64."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastglow.diagnosis.comparison import Error
from fastglow.diagnosis.rounding import perturbed
from fastglow.errors import FastglowError
from fastglow.kernels import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

FLOAT32_AND_FLOAT16 = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
"""The dtypes that Triton's interpreter computes correctly."""

EVERY_DTYPE = pytest.mark.parametrize("dtype", backend.KERNEL_DTYPES, ids=str)

Caps = Mapping[torch.dtype, tuple[float, float]]
"""Largest errors of outputs and of gradients, by their dtype, in units of the largest exact value."""


@contextmanager
def host_syncs(mode: str) -> Iterator[list[warnings.WarningMessage]]:
    """Within the block, waiting for the device is an "error", or with "warn" one of the yielded warnings each."""
    found: list[warnings.WarningMessage] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode(mode)  # warns that it is a prototype
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += (one for one in caught if "called a synchronizing" in str(one.message))


class Results(NamedTuple):
    """Result of `differentiate`."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor | None]  # by the argument's name; None: no gradient reached it


# Arguments.


def strided(x: Tensor) -> Tensor:
    """The same values, with the dimensions in reverse order in memory and gaps between the elements."""
    order = tuple(reversed(range(x.dim())))
    return torch.stack((x.permute(order),) * 2, dim=-1)[..., 0].permute(order)


def cast(arguments: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Floating-point tensors as leaves of another dtype; other arguments as they are."""
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for name, x in arguments.items()
    }


def zeros_for_shapes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A tensor of zeros in place of each shape, which is a tuple; other arguments as they are."""
    return {name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in arguments.items()}


def changed_fields(case: Any) -> str:
    """The fields of a dataclass that differ from their defaults: a `__str__` for test ids."""
    changed = [f"{f.name} {getattr(case, f.name)}" for f in fields(case) if getattr(case, f.name) != f.default]
    return ", ".join(changed) or "default"


# Errors and launches.


def assert_refused(message: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """The call raises a FastglowError of one line that matches the regular expression."""
    with pytest.raises(FastglowError, match=message) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)


def assert_kernels_refuse(message: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """As `assert_refused`, with the Triton backend forced."""
    with backend.use_backend("triton"):
        assert_refused(message, function, *args, **kwargs)


def launch_counter(op: str | None = None) -> Callable[[], int]:
    """A function that returns the kernel launches since this call, of one operation or of all."""

    def total() -> int:
        return backend.launches.total() if op is None else backend.launches[op]

    before = total()
    return lambda: total() - before


# Results.


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Equal values and dtypes in the same structure of sequences and mappings; no NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def assert_seeded_by_pytorch(call: Callable[[], Any]) -> Any:
    """Two calls draw different values, and the same ones again after `torch.manual_seed`; returns the first result."""
    torch.manual_seed(1)
    first, second = call(), call()
    torch.manual_seed(1)
    assert_same_bits(call(), first)
    assert not any(torch.equal(x, y) for x, y in zip(tree_leaves(first), tree_leaves(second), strict=True))
    return first


def assert_fraction(found: Tensor, p: float, deviations: float = 4) -> None:
    """The fraction of True in `found` is within this many standard deviations of p."""
    assert abs(found.double().mean().item() - p) < deviations * (p * (1 - p) / found.numel()) ** 0.5


def assert_as_exact_as(actual: Tensor, references: Tensor, exact: Tensor, factor: float, cap: float) -> None:
    """The largest error of `actual` is at most `factor` times that of PyTorch's own operations, and within a cap.

    The bound does not depend on the order of PyTorch's sums on this processor: see `rounding.py`.

    Args:
        actual: the kernel's result.
        references: of PyTorch's own operations in the same dtype, as `rounding.perturbed` gives them: [runs, *shape].
        exact: of the reference in float64.
        factor: 2 for outputs, 3 for gradients.
        cap: in units of the largest absolute value of `exact`, or of the terms that cancel in it if they are larger.
    """
    assert actual.shape == exact.shape == references.shape[1:]
    assert actual.dtype == references.dtype
    assert bool(actual.isfinite().all()), "not finite: unwritten or overflowed"
    error = Error.of(actual, references, exact)
    assert error.actual <= factor * error.pytorchs, f"error {error.actual:.3g}, PyTorch's {error.pytorchs:.3g}"
    assert error.actual <= cap * error.scale, f"error {error.actual:.3g} of {error.scale:.3g}"


def differentiate(
    function: Callable[..., Any], arguments: Mapping[str, Any], upstream: Sequence[Tensor | None]
) -> Results:
    """Outputs of function(**arguments), and gradients of the tensors among the arguments that require them.

    Args:
        function: returns a tensor or a sequence of them; None is an absent output.
        upstream: one gradient per output, of any dtype; None: no gradient reaches the output.
    """
    outputs = _listed(function(**arguments))
    leaves = {name: x for name, x in arguments.items() if isinstance(x, Tensor) and x.requires_grad}
    used = [(x, d.to(x.dtype)) for x, d in zip(outputs, upstream, strict=True) if x is not None and d is not None]
    gradients: Sequence[Tensor | None] = ()
    if leaves:
        used_outputs, ds = zip(*used, strict=True)
        gradients = torch.autograd.grad(used_outputs, list(leaves.values()), ds, allow_unused=True)
    return Results([x.detach() for x in outputs if x is not None], dict(zip(leaves, gradients, strict=True)))


def assert_results_as_exact_as(actual: Results, references: Results, exact: Results, caps: Caps) -> None:
    """Outputs within twice and gradients within three times PyTorch's error, and within `caps`.

    Args:
        actual: of the kernels.
        references: of PyTorch's own operations, as `rounding.perturbed` gives them.
        exact: of the reference in float64.
    """
    for x, pytorchs, truth in zip(actual.outputs, references.outputs, exact.outputs, strict=True):
        assert_as_exact_as(x, pytorchs, truth, 2, caps[x.dtype][0])
    assert actual.gradients.keys() == exact.gradients.keys()
    for name, truth in exact.gradients.items():
        x, pytorchs = actual.gradients[name], references.gradients[name]
        if truth is None:
            assert x is None or not x.any(), name
            continue
        assert x is not None, name
        pytorchs = torch.zeros_like(x).unsqueeze(0) if pytorchs is None else pytorchs
        assert_as_exact_as(x, pytorchs, truth, 3, caps[x.dtype][1])


def check_against_fp64(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Mapping[str, Any],
    caps: Caps,
    *,
    reached: Sequence[bool] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda d: d,
) -> None:
    """Compares outputs and gradients of an operation with its reference in the same dtype and in float64.

    Args:
        function: the operation, called with `arguments` as keywords.
        reference: its definition, or the operation itself: it runs under the reference backend.
        arguments: tensors that require gradients are differentiated.
        caps: see `Caps`.
        reached: whether a gradient reaches each output; default: all.
        layout: changes the memory layout of the upstream gradients.
    """
    with backend.use_backend("reference"):
        with torch.no_grad():
            outputs = _listed(reference(**arguments))
        reached = [True] * len(outputs) if reached is None else reached
        upstream = [
            layout(torch.randn_like(x)) if x is not None and r else None for x, r in zip(outputs, reached, strict=True)
        ]
        exact = differentiate(reference, cast(arguments, torch.float64), upstream)
        references = perturbed(lambda: differentiate(reference, arguments, upstream))
    assert_results_as_exact_as(differentiate(function, arguments, upstream), references, exact, caps)


def check_positional_against_fp64(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: Sequence[Tensor],
    caps: Caps,
    *,
    needed: Sequence[bool] | None = None,
    reached: Sequence[bool] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda d: d,
) -> None:
    """As `check_against_fp64` for a function of tensors alone; `needed`: which need a gradient, default: all."""
    needed = [True] * len(tensors) if needed is None else needed
    arguments = {str(i): x.detach().requires_grad_(n) for i, (x, n) in enumerate(zip(tensors, needed, strict=True))}
    by_keyword = [lambda f=f, **named: f(*named.values()) for f in (function, reference)]
    check_against_fp64(*by_keyword, arguments, caps, reached=reached, layout=layout)


def recorded(step: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of `step`, recorded after one run, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


def _listed(outputs: Any) -> list[Tensor | None]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)
