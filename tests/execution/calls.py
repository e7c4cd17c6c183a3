"""What a call of an operation is made of: its tensors, results and launch configurations."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastglow.kernels import backend
from fastglow.kernels.launch import use_config

from .memory import Memory
from .order import Call, Results

FLOAT, HALF = (torch.float32,), (torch.float16,)


class Inputs:
    """Draws the tensors of a call, each between poisoned elements, and collects the call's results."""

    def __init__(self, memory: Memory, dtype: torch.dtype, spread: bool) -> None:
        self._memory, self._dtype, self._spread = memory, dtype, spread
        self._placed: list[tuple[Tensor, Tensor]] = []  # with a copy
        self._leaves: list[Tensor] = []

    def place(self, x: Tensor) -> Tensor:
        placed = self._memory.place(x, self._spread)
        self._placed.append((placed, placed.clone()))
        return placed

    def constant(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return self.place((torch.randn(shape) * scale).to(dtype or self._dtype))

    def leaf(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        return self.as_leaf(torch.randn(shape) * scale, dtype)

    def as_leaf(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        self._leaves.append(self.place(x.to(dtype or self._dtype)).requires_grad_())
        return self._leaves[-1]

    def integers(self, *values: int) -> Tensor:
        return self.place(torch.tensor(values))

    def results(self, *outputs: Tensor | None) -> Results:
        """The outputs, and the leaves' gradients from random ones of the outputs; the inputs keep their values."""
        present = {f"output {i}": x for i, x in enumerate(outputs) if x is not None}
        results = {name: x.detach() for name, x in present.items()}
        if self._leaves:
            reached = [x for x in present.values() if x.requires_grad]
            upstream = [self.place(torch.randn(x.shape).to(x.dtype)) for x in reached]
            gradients = torch.autograd.grad(reached, self._leaves, upstream, allow_unused=True)
            results |= {f"gradient {i}": x for i, x in enumerate(gradients) if x is not None}
        for placed, copy in self._placed:
            assert torch.equal(placed, copy), f"an input of shape {list(placed.shape)} was overwritten"
        return results


@dataclass(frozen=True, eq=False)
class Case:
    """A call whose launches have several programs along every axis of their grids.

    Attributes:
        run: makes its tensors and returns `Inputs.results`.
        configs: small tiles, by kernel as in `pick_config`.
        constants: attributes of modules with another value: (module, name, value).
        dtypes: of the call. With float32 its tensors have gaps between their elements, see `Memory.place`.
    """

    name: str
    run: Callable[[Inputs], Results]
    configs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    constants: Sequence[tuple[Any, str, Any]] = ()
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16)

    def call(self, dtype: torch.dtype) -> Call:
        def call(memory: Memory) -> Results:
            with ExitStack() as stack:
                stack.enter_context(backend.use_backend("triton"))
                for kernel, config in self.configs.items():
                    stack.enter_context(use_config(kernel, config))
                for module, name, value in self.constants:
                    stack.enter_context(mock.patch.object(module, name, value))
                return self.run(Inputs(memory, dtype, spread=dtype == torch.float32))

        return call


def config(**blocks: int) -> dict[str, int]:
    """A launch configuration, with options that the interpreter does not read."""
    return {**blocks, "num_warps": 4, "num_stages": 1}


def both(op: str, **blocks: int) -> dict[str, dict[str, int]]:
    """The same configuration for the forward and the backward kernel."""
    return {f"{op}_{direction}": config(**blocks) for direction in ("fwd", "bwd")}
