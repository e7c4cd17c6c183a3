"""What `accelerate` did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from torch import nn

from .swapping import restore


@dataclass(frozen=True)
class Entry:
    """What was done with one module.

    Attributes:
        module: its name within the model; '' for the model itself.
        cls: its class, with the path of its package.
        op: the operation of `fastglow.ops` or `fastglow.kernels` that computes it now; None if it was left.
        text: which kernel runs and where, or why the module was left.
    """

    module: str
    cls: str
    op: str | None
    text: str

    def __str__(self) -> str:
        state = f"swapped, {self.op}" if self.op else "left"
        return f"{self.module or 'the model'} ({self.cls}): {state}: {self.text}"


@dataclass
class Report:
    """What `accelerate` swapped and what it left, module by module. Leaving a `with` block of it undoes the swaps.

    Attributes:
        entries: one per module that looks like one that fastglow knows, in the order of `named_modules()`; in a model
            without any, one for the model.
    """

    entries: list[Entry] = field(default_factory=list)
    _modules: list[nn.Module] = field(default_factory=list, repr=False)

    @property
    def swapped(self) -> list[Entry]:
        """The modules that compute on fastglow's operations."""
        return [entry for entry in self.entries if entry.op is not None]

    @property
    def left(self) -> list[Entry]:
        """The modules that were left as they were."""
        return [entry for entry in self.entries if entry.op is None]

    def undo(self) -> None:
        """Gives the modules that this call swapped their own methods back; twice is safe."""
        for module in self._modules:
            restore(module)
        self._modules.clear()

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
