"""How much memory a call takes: the most that PyTorch's allocator hands out, on a GPU and on a CPU."""

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .environment import device


def peak_bytes(call: Callable[[], object], on: str | None = None) -> int:
    """The most bytes that tensors have during a call, above those that they had before; `on`: "cpu" or "cuda", None:
    the suite's device.

    On a CPU this is what PyTorch's allocator reports to its profiler, an exact count that no other process changes.
    What libraries allocate for themselves, such as oneDNN's scratch memory, is not in it.
    """
    gc.collect()
    if (on or device().type) == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    total = peak = 0
    for _, n in sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"):
        total += n
        peak = max(peak, total)
    return peak
