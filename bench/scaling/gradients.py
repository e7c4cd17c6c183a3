"""When the gradients of a model are ready in its backward pass, and how many bytes they have."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastglow.errors import FastglowError
from fastglow.files import replacing

READINESS_FILE = Path(__file__).parent / "readiness.json"
"""{model: [[fraction of the backward pass, bytes], ...]}, in the order in which the gradients are ready."""

FRACTION_DIGITS = 3


class Gradient(NamedTuple):
    """
    Attributes:
        ready: when it is complete, as a fraction of the backward pass.
        size: bytes.
    """

    ready: float
    size: int


def measure(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], passes: int = 3) -> list[Gradient]:
    """Their gradients, in the order in which they are ready.

    On a CPU by the host's clock, on a GPU by events on the stream. Fractions are medians over the passes, of which the
    first is left out.

    Args:
        parameters: of a model.
        loss: its forward pass.
        passes: to measure.
    """
    stamp = _event if parameters[0].is_cuda else time.perf_counter
    stamps: dict[int, object] = {}
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda _, i=i: stamps.update({i: stamp()}))
        for i, parameter in enumerate(parameters)
    ]
    fractions: list[list[float]] = []
    try:
        for _ in range(1 + passes):
            stamps.clear()
            value = loss()
            begin = stamp()
            value.backward()
            end = stamp()
            whole = _between(begin, end)
            fractions.append([_between(begin, stamps[i]) / whole if i in stamps else 1.0 for i in range(len(handles))])
            for parameter in parameters:
                parameter.grad = None
    finally:
        for handle in handles:
            handle.remove()
    ready = [statistics.median(of_parameter) for of_parameter in zip(*fractions[1:], strict=True)]
    sizes = [parameter.numel() * parameter.element_size() for parameter in parameters]
    return sorted(Gradient(fraction, size) for fraction, size in zip(ready, sizes, strict=True))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin: object, end: object) -> float:
    """Seconds, or milliseconds between events: only ratios count."""
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return begin.elapsed_time(end)
    assert isinstance(begin, float) and isinstance(end, float)
    return end - begin


def save(name: str, gradients: Sequence[Gradient], path: Path = READINESS_FILE) -> None:
    """Adds a model to the file, or replaces it."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = [[round(ready, FRACTION_DIGITS), size] for ready, size in gradients]
    lines = (f'"{model}": {json.dumps(known[model], separators=(",", ":"))}' for model in sorted(known))
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def load(name: str, path: Path = READINESS_FILE) -> list[Gradient]:
    """
    Raises:
        FastglowError: the model was not measured.
    """
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name not in known:
        raise FastglowError(f"{path} has no {name}: run `python -m bench.scaling gradients`")
    return [Gradient(ready, size) for ready, size in known[name]]
