"""Stands in for CUDA graphs on a CPU: recording and replaying run the function on the same buffers."""

from types import SimpleNamespace

import pytest
import torch

from fastglow.engine import recording


@pytest.fixture
def graphs(monkeypatch):
    """Counts of `recorded` and `replayed` graphs."""
    counts = SimpleNamespace(recorded=0, replayed=0)

    class Graph:
        def __init__(self, run):
            self.replay = lambda: (setattr(counts, "replayed", counts.replayed + 1), run())

    def record(run, device, pool):
        counts.recorded += 1
        run()
        return Graph(run)

    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(wait_event=lambda event: None, record_event=lambda: event)
    monkeypatch.setattr(recording.Recorder, "records", True)
    monkeypatch.setattr(recording, "record_graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return counts
