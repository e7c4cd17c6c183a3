"""CUDA graphs of the teacher-forced loop: what is recorded, and that replays give the same bits as launches."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastglow.kernels import backend, launch
from fastglow.kernels.graphs import write_integers
from fastglow.kernels.teacher_forced_loop import replay
from fastglow.kernels.teacher_forced_loop.frame import teacher_forced_advance_kernel

from .checks import Results, assert_same_bits, differentiate
from .teacher_forced_cases import LOOP, PUBLISHED, Case


class FakeGraph:
    """Stands in for `Graph`: each replay launches the kernels."""

    def __init__(self, loop, device):
        self.clock, self.table = replay.new_clock(device), replay.new_table(loop, device)
        self.graph = SimpleNamespace(replay=lambda: replay.launch_replay(loop.frame, self.clock, self.table))


@pytest.fixture
def graphs(monkeypatch) -> OrderedDict:
    """The cache of recorded graphs, of two frames each, on a CPU too."""
    monkeypatch.setattr(replay, "FRAMES_PER_GRAPH", 2)
    monkeypatch.setattr(replay, "Graph", FakeGraph)
    monkeypatch.setattr(replay, "stream_to_record_on", lambda device: 0)
    monkeypatch.setattr(replay, "graphs", OrderedDict())
    return replay.graphs


def launched_frame_by_frame(arguments: dict[str, Any], upstream: list[Tensor]) -> Results:
    """The results without recorded graphs; leaves the cache of graphs unchanged."""
    kept = dict(replay.graphs)
    replay.graphs.clear()
    results = differentiate(LOOP, arguments, upstream)
    replay.graphs.clear()
    replay.graphs.update(kept)
    return results


def test_one_graph_works_for_any_length(device, triton_backend, graphs):
    """The first call launches, the second records what later ones replay."""
    for i, (frames, symbols) in enumerate(((1, 7), (3, 7), (2, 4))):
        case = Case(frames=frames, symbols=symbols, p_attention_dropout=0.2)
        arguments, upstream = case.arguments(torch.float32, device), case.upstream(torch.float32, device)
        ours = differentiate(LOOP, arguments, upstream)
        assert_same_bits(ours, launched_frame_by_frame(arguments, upstream))
        assert [graph is not None for graph in graphs.values()] == [i > 0, i > 0]  # forward and backward
    assert [graph.clock.tolist() for graph in graphs.values()] == [[2, 2, 4]] * 2


def test_no_kernel_is_loaded_while_a_graph_is_recorded(device, triton_backend, graphs, monkeypatch):
    loaded = set()

    def note(op, kernel, grid, *arguments, **options):
        constants = [x for x in arguments if not isinstance(x, Tensor)]
        if kernel is not teacher_forced_advance_kernel:
            constants = constants[1:]  # one binary for all frame offsets
        loaded.add((kernel, repr(constants), repr({**options, "device": None})))
        launch.launch(op, kernel, grid, *arguments, **options)

    monkeypatch.setattr(replay, "launch", note)
    case = Case(frames=1)
    arguments, upstream = case.arguments(torch.float32, device), case.upstream(torch.float32, device)
    differentiate(LOOP, arguments, upstream)
    loaded_before = set(loaded)
    differentiate(LOOP, arguments, upstream)
    assert all(graph is not None for graph in graphs.values())
    assert loaded == loaded_before


def test_a_failed_call_records_no_graph(device, poison, graphs, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(replay, "launch", fail)
    with backend.use_backend("triton"), pytest.raises(RuntimeError, match="out of memory"):
        LOOP(**Case().arguments(torch.float32, device))
    assert not graphs


def test_tables_are_written_under_another_default_device(device):
    table = torch.zeros(3, dtype=torch.int64, device=device)
    with torch.device("meta"):
        write_integers(table, (1, 2, 2**62))
    assert table.tolist() == [1, 2, 2**62]


@pytest.mark.gpu
def test_replays_give_the_same_bits_as_launches_at_any_length(triton_backend):
    """The first call launches, the second records, later ones of any length and text replay."""
    replay.graphs.clear()
    for frames, symbols in ((40, 93), (40, 93), (1, 20), (33, 64), (16, 93)):
        case = Case(**{**vars(PUBLISHED), "frames": frames, "symbols": symbols})
        arguments, upstream = case.arguments(torch.float16, "cuda"), case.upstream(torch.float16, "cuda")
        ours = differentiate(LOOP, arguments, upstream)
        assert_same_bits(ours, launched_frame_by_frame(arguments, upstream))
    assert len(replay.graphs) == 2  # forward and backward
    assert all(graph is not None for graph in replay.graphs.values())


@pytest.mark.gpu
def test_each_stream_has_its_own_graphs(triton_backend):
    """Streams do not wait for each other, so each needs its own clock and table."""
    replay.graphs.clear()
    case = Case(**{**vars(PUBLISHED), "frames": 20})
    arguments, upstream = case.arguments(torch.float16, "cuda"), case.upstream(torch.float16, "cuda")
    expected = differentiate(LOOP, arguments, upstream)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(4):
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(differentiate(LOOP, arguments, upstream))
        torch.cuda.synchronize()
        for result in results:
            assert_same_bits(result, expected)
    assert {stream for *_, stream in replay.graphs} == {0, *(stream.cuda_stream for stream in streams)}


@pytest.mark.gpu
def test_inside_a_cuda_graph(triton_backend):
    case = Case(**{**vars(PUBLISHED), "frames": 5})
    seed = torch.tensor(1, device="cuda")
    arguments, upstream = {**case.arguments(torch.float16, "cuda"), "seed": seed}, case.upstream(torch.float16, "cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        differentiate(LOOP, arguments, upstream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        recorded = differentiate(LOOP, arguments, upstream)
    for value in (2, 3):
        seed.fill_(value)
        with torch.no_grad():
            arguments["memory"].normal_()
        graph.replay()
        assert_same_bits(recorded, differentiate(LOOP, arguments, upstream))
