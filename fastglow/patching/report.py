"""What `accelerate` did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from torch import nn

from .swapping import Key, Swapped, SwapState, restore_one, state_of, swap

SWAPPED, LEFT, OWN = "swapped", "left", "own"


@dataclass(frozen=True)
class Entry:
    """What was done with one module.

    Attributes:
        module: its name within the model; '' for the model itself.
        cls: its class, with its package.
        state: SWAPPED, LEFT, or OWN, fastglow's own module, which runs on the kernels anyway.
        op: the operation that computes it now; None unless it is swapped.
        text: which kernel runs and where, or why the module was left.
    """

    module: str
    cls: str
    state: str
    op: str | None
    text: str

    def __str__(self) -> str:
        state = f"{self.state}, {self.op}" if self.op else self.state
        return f"{self.module or 'the model'} ({self.cls}): {state}: {self.text}"


class Swap(NamedTuple):
    """What `undo` undoes."""

    module: nn.Module
    state: SwapState
    before: tuple[Key, SwapState] | None  # of a module that was swapped already


@dataclass
class Report:
    """What `accelerate` swapped and what it left, module by module. Leaving a `with` block of it undoes the swaps.

    Attributes:
        entries: one per module that looks like one that fastglow knows, in the order of `named_modules()`; in a model
            without any, one for the model.
    """

    entries: list[Entry] = field(default_factory=list)
    _swaps: list[Swap] = field(default_factory=list, repr=False)

    @property
    def swapped(self) -> list[Entry]:
        """The modules that compute on fastglow's operations."""
        return [entry for entry in self.entries if entry.state == SWAPPED]

    @property
    def left(self) -> list[Entry]:
        """The modules that were left as they were."""
        return [entry for entry in self.entries if entry.state == LEFT]

    def undo(self) -> None:
        """Gives the modules that this call swapped the methods that they had before; in any order, twice is safe."""
        for module, state, before in self._swaps:
            state.undone = True
            if isinstance(module, Swapped) and state_of(module) is state:  # not swapped again since
                restore_one(module)
                if before is not None and not before[1].undone:
                    swap(module, *before)
        self._swaps.clear()

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()
