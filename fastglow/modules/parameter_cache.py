"""Values computed from parameters and kept until the parameters change."""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

Value = TypeVar("Value")

_unseen_steps = 0
"""Steps of optimizers that may have written to parameters without their counting it."""


@cache
def _watch_optimizers() -> None:
    """Fused kernels, PyTorch's own among them, count no change of a parameter (`_version`)."""

    def after_step(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        global _unseen_steps
        counts = type(optimizer).__module__.startswith("torch.optim.")
        if not counts or any(group.get("fused") for group in optimizer.param_groups):
            _unseen_steps += 1

    register_optimizer_step_post_hook(after_step)


class ParameterCache(Generic[Value]):
    """One value, computed again when a parameter was written to, moved, cast or replaced.

    Nothing tells of what is written past PyTorch's count of changes (see `Refreshable`): `forget` then. It belongs
    to one module: copies and pickles of the module start with an empty one. Not for training: the value carries no
    gradient to the parameters.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: Value | None = None
        # While these live, no other weights can come to lie at the addresses of the key.
        self._storages: tuple[Tensor, ...] = ()

    def get(self, parameters: Sequence[Tensor], build: Callable[[], Value], *settings: Hashable) -> Value:
        """`build()`, or what it returned last time for these parameters as they are now and these settings."""
        if any(parameter.is_inference() for parameter in parameters):
            return build()  # such tensors do not count their changes
        _watch_optimizers()
        counts = tuple((x.data_ptr(), x._version, x.dtype, x.device) for x in parameters)
        key = (counts, _unseen_steps, settings)
        if key != self._key:
            self._value = build()
            self._key = key
            self._storages = tuple(x.detach() for x in parameters)
        return self._value

    def forget(self) -> None:
        self._key, self._value, self._storages = None, None, ()

    def __getstate__(self) -> dict[str, Any]:
        """Of copies and pickles: nothing kept."""
        return vars(ParameterCache())


class Refreshable(nn.Module):
    """A module that keeps what it computed from its parameters, or has parts that do."""

    def refresh(self) -> None:
        """Drops what inference computed from the weights (folded, normalised and inverted ones); it is computed again.

        Training steps, `load_state_dict`, `.to()`, new parameters and changes in place are noticed without it. It is
        needed after weights were written where PyTorch does not count changes: through `parameter.data`, through a
        NumPy array, DLPack tensor or storage that shares their memory, or by a replayed CUDA graph. A `Denoiser` made
        from the model before is to be made anew.
        """
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, ParameterCache):
                    value.forget()
