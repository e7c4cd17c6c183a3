"""How many bytes a computation stores and allocates on a CPU: exact counts, which depend on no processor."""

import gc
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def stored_bytes(call: Callable[[], Any], besides: Iterable[Tensor] = (), at_least: int = 0) -> int:
    """Bytes of the memory blocks that a forward pass stores for its backward pass.

    Args:
        besides: tensors that exist anyway.
        at_least: smaller blocks do not count.
    """
    known = {x.untyped_storage().data_ptr() for x in besides}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensors, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known and storage.nbytes() >= at_least:
            kept[storage.data_ptr()] = storage.nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        results = call()
    del results
    return sum(n for n, _ in kept.values())


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that PyTorch's allocator has handed out during a call, above what it had before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    allocations = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    total = peak = 0
    for _, n in allocations:
        total += n
        peak = max(peak, total)
    return peak
