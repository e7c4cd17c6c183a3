"""Stands in for CUDA graphs on a CPU: recording and replaying run the function on the same buffers."""

from types import SimpleNamespace

import pytest
import torch

from fastglow.engine import recording


@pytest.fixture
def graphs(monkeypatch):
    """Counts of `recorded` and `replayed` graphs; set `fails` for recordings that fail."""
    counts = SimpleNamespace(recorded=0, replayed=0, fails=False, streams=set())

    class Graph:
        def __init__(self, run):
            self.replay = lambda: (setattr(counts, "replayed", counts.replayed + 1), run())

    def record(run, device, pool, stream, rehearse):
        if counts.fails:
            raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")
        counts.recorded += 1
        counts.streams.add(id(stream))
        run()
        return Graph(run)

    event = SimpleNamespace(synchronize=lambda: None)
    stream = SimpleNamespace(wait_event=lambda event: None, record_event=lambda: event)
    monkeypatch.setattr(recording.Recorder, "records", True)
    monkeypatch.setattr(recording, "record_graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return counts
