"""A whole training step as a CUDA graph: one launch in place of thousands."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.kernels.graphs import record_graph, recording_stream
from fastglow.modules.parameter_cache import Refreshable

from .data import SegmentBatch, TextMelBatch
from .ranks import Ranks
from .state import TrainState

WARM_UP = 3
"""Steps before the recording: compile kernels, make the optimizer's state, and fill caches of tables and plans."""

MAX_GRAPHS = 4
"""Of different shapes. The steps of an epoch have one of two numbers of items."""

Run = Callable[[Sequence[Any], Sequence[float]], None]


def check_recordable(model_name: str, device: torch.device, ranks: Ranks) -> None:
    """
    Raises:
        FastglowError: no CUDA graph can be recorded of this run's steps.
    """
    if model_name != "waveglow":
        problem = f"needs the fixed shapes of WaveGlow's segments, {model_name}'s differ from step to step"
    elif device.type != "cuda":
        problem = f"needs a GPU, device={device} is none"
    elif ranks.several:
        problem = f"records the steps of one process, there are {ranks.world_size}"
    else:
        return
    raise FastglowError(f"cuda_graph=True {problem}: pass --no-cuda-graph")


class RecordedStep:
    """Replays a step, with the batches copied to where the recorded one read them.

    For each shape, the first `WARM_UP` steps run as they are written, and so do all of further shapes.

    Args:
        run: launches a step with (batches on the device, weights); must not wait for it.
        state: that the step changes.
    """

    def __init__(self, run: Run, state: TrainState):
        self._run = run
        self._state = state
        self._learning_rate = torch.zeros((), dtype=torch.float32, device=state.device)
        self._seen: Counter[tuple] = Counter()
        self._graphs: dict[tuple, tuple[list[Tensor], Any]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @property
    def n_graphs(self) -> int:
        return len(self._graphs)

    def __call__(self, batches: Sequence[TextMelBatch | SegmentBatch], weights: Sequence[float]) -> None:
        """
        Args:
            batches: on the device.
            weights: of their losses.
        """
        tensors = [tensor for batch in batches for tensor in _tensors(batch)]
        key = (*weights, *(tensor.shape for tensor in tensors))
        self._learning_rate.fill_(self._state.optimizer.param_groups[0]["lr"])
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] <= WARM_UP or len(self._graphs) == MAX_GRAPHS:
                with self._tensor_learning_rate():
                    self._aside(lambda: self._run(batches, weights))
                return
            still = [_clone(batch) for batch in batches]
            with self._tensor_learning_rate():
                graph = self._record(lambda: self._run(still, weights))
            self._graphs[key] = [tensor for batch in still for tensor in _tensors(batch)], graph
        inputs, graph = self._graphs[key]
        torch._foreach_copy_(inputs, tensors)
        graph.replay()
        # PyTorch did not see the replay write the weights, from which inference may have made others.
        model = self._state.model
        assert isinstance(model, Refreshable)
        model.refresh()

    @contextmanager
    def _tensor_learning_rate(self) -> Iterator[None]:
        """A recorded number would stay. Outside, and so in checkpoints, the optimizer is as without graphs."""
        groups = self._state.optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        for group in groups:
            group["lr"], group["capturable"] = self._learning_rate, True
        try:
            yield
        finally:
            for group, (lr, capturable) in zip(groups, before, strict=True):
                group["lr"], group["capturable"] = lr, capturable

    def _aside(self, run: Callable[[], None]) -> None:
        """On the stream that is recorded later: what libraries set up, they set up for a stream."""
        device = self._state.device
        current, side = torch.cuda.current_stream(device), self._side_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run()
        current.wait_stream(side)

    def _record(self, run: Callable[[], None]) -> Any:
        # Their replays never overlap, and nothing of one is read after it: the graphs share their memory.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return record_graph(run, self._state.device, self._pool, self._side_stream())

    def _side_stream(self) -> torch.cuda.Stream:
        if self._stream is None:
            self._stream = recording_stream(self._state.device)
        return self._stream


def _tensors(batch: Any) -> list[Tensor]:
    values = (getattr(batch, field.name) for field in fields(batch))
    return [value for value in values if isinstance(value, Tensor)]


def _clone(batch: Any) -> Any:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})
