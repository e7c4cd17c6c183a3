"""Recorded calls: what is recorded, replayed, dropped, and that results are those of the function."""

import itertools
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastglow.audio import MelConfig
from fastglow.engine import recording
from fastglow.engine.recording import Recorder, bucket
from fastglow.engine.vocoders import build_vocoder
from fastglow.kernels import backend
from fastglow.kernels.graphs import _abandon

from ..kernels.checks import host_syncs
from .conftest import make_waveglow
from .fake_graphs import graphs  # noqa: F401


class Product:
    """x W^T by a model's weight, as a method that a Recorder can call."""

    def __init__(self, device="cpu"):
        self.model = nn.Linear(32, 5, bias=False).to(device)
        self.call = Recorder(self.model, most=3)

    def product(self, x):
        return x @ self.model.weight.T

    def check(self, *shape):
        x = torch.randn(*shape, 32, device=self.model.weight.device)
        torch.testing.assert_close(self.call(self.product, x), self.product(x), rtol=0, atol=0)


@pytest.mark.parametrize("least", [1, 2, 32, 48])
def test_buckets_are_near_and_few(least):
    found = [bucket(n, least) for n in range(1, 3000)]
    assert found == sorted(found)
    for n, size in enumerate(found, 1):
        assert size >= max(n, least) and bucket(size, least) == size
        assert size <= max(1.5 * n + 1, least)
    assert len(set(found)) <= 24


def test_on_a_cpu_functions_run_as_written():
    product = Product()
    assert not product.call.records
    for _ in range(3):
        product.check(2)
    assert product.call.memory() == 0


def recorder_on_a_gpu():
    parameter = SimpleNamespace(is_cuda=True, device=torch.device("cpu"))
    return Recorder(SimpleNamespace(parameters=lambda: iter([parameter])))


def test_calls_under_autocast_are_not_recorded(monkeypatch):
    """Its cast weights are freed at the end of its block; a graph would go on reading them."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    recorder = recorder_on_a_gpu()
    with torch.autocast("cpu", torch.bfloat16):
        assert not recorder.records
    with torch.autocast("cpu", enabled=False):
        assert recorder.records


def test_the_reference_backend_is_not_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    recorder = recorder_on_a_gpu()
    assert recorder.records
    with backend.use_backend("reference"):
        assert not recorder.records
    with backend.use_backend("triton"):
        assert recorder.records


def test_the_second_call_of_a_size_records_and_later_ones_replay(graphs):  # noqa: F811
    product = Product()
    product.check(2)
    assert (graphs.recorded, graphs.replayed) == (0, 0)
    for i in range(1, 4):
        product.check(2)
        assert (graphs.recorded, graphs.replayed) == (1, i)
    product.check(4)
    assert graphs.recorded == 1


def test_results_are_not_overwritten_by_later_calls(graphs):  # noqa: F811
    product = Product()
    inputs = [torch.randn(2, 32) for _ in range(4)]
    outputs = [product.call(product.product, x) for x in inputs]
    for x, output in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(output, product.product(x), rtol=0, atol=0)
    assert graphs.replayed == 3


def test_other_dtypes_backends_and_precisions_are_other_calls(graphs):  # noqa: F811
    product = Product()
    for _ in range(2):
        product.call(product.product, torch.randn(2, 32))
    product.model.double()
    product.call(product.product, torch.randn(2, 32, dtype=torch.float64))
    assert graphs.recorded == 1
    product.model.float()
    with backend.use_backend("triton"):
        product.check(2)
        assert graphs.recorded == 1
        product.check(2)
        assert graphs.recorded == 2


def test_the_least_recently_used_graph_is_dropped(graphs):  # noqa: F811
    product = Product()
    for n in (1, 1, 2, 2, 1, 3, 3, 4, 4):  # the fourth size drops 2, not 1
        product.check(n)
    assert graphs.recorded == 4
    product.check(4)
    product.check(2)
    assert graphs.recorded == 4
    product.check(2)
    assert graphs.recorded == 5


@pytest.fixture
def pools(graphs, monkeypatch):  # noqa: F811
    """The memory pool of each recording, tried or made."""
    handles, pools = itertools.count(), []
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(handles)))
    record = recording.record_graph
    monkeypatch.setattr(
        recording, "record_graph", lambda run, *args, **more: (pools.append(args[1]), record(run, *args, **more))[1]
    )
    return pools


def test_a_pool_is_not_used_again_after_its_last_graph(pools):
    """PyTorch fails an internal assertion if it is."""
    product = Product()
    for n in (1, 1, 2, 2, 3, 4, 6, 6, 8, 8):  # 3, 4 and 6 push out the graphs of 1 and 2
        product.check(n)
    assert pools == [(0, 0), (0, 0), (0, 1), (0, 1)]


def test_only_dropped_graphs_are_waited_for(graphs, monkeypatch):  # noqa: F811
    product, waits = Product(), []
    monkeypatch.setattr(product.call, "_finish", lambda: waits.append(graphs.recorded))
    product.check(1)
    waits.clear()  # the first call makes room for the weights
    for n in (2, 3, 4, 6, 8, 8, 1, 2):
        product.check(n)
    assert not waits
    product.check(3)
    assert len(waits) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nn.init.ones_(model.weight),
        lambda model: model.load_state_dict({"weight": torch.ones(5, 32)}),
        lambda model: setattr(model, "weight", nn.Parameter(torch.ones(5, 32))),
    ],
    ids=["in place", "load_state_dict", "replaced"],
)
def test_changed_weights_drop_the_graphs(graphs, change):  # noqa: F811
    product = Product()
    for _ in range(2):
        product.check(2)
    with torch.no_grad():
        change(product.model)
    product.check(2)
    assert (graphs.recorded, graphs.replayed) == (1, 1)
    product.check(2)
    assert (graphs.recorded, graphs.replayed) == (2, 2)


def test_what_cannot_be_recorded_runs_as_written(graphs, caplog):  # noqa: F811
    product = Product()
    graphs.fails = True
    for _ in range(4):
        product.check(2)
    (record,) = caplog.records
    assert record.getMessage() == (
        "product runs without a CUDA graph: CUDA error: operation not permitted when stream is capturing"
    )
    graphs.fails = False
    for _ in range(3):
        product.check(2)
        product.check(4)
    assert graphs.recorded == 1


def test_all_graphs_of_a_model_are_recorded_on_one_stream(graphs):  # noqa: F811
    product = Product()
    for n in (1, 1, 2, 2, 4, 4):
        product.check(n)
    assert (graphs.recorded, len(graphs.streams)) == (3, 1)


def test_sizes_that_are_no_buckets_or_too_large_run_as_written(graphs):  # noqa: F811
    product = Product()
    for _ in range(3):
        product.check(5)
        product.check(1024)
    assert graphs.recorded == 0


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 7, 33), (6, 7, 48)), ((2, 50), (2, 64)), ((64, 3, 200), (64, 3, 200))]
)
def test_inputs_are_padded_to_buckets(graphs, shape, expected):  # noqa: F811
    call = Product().call
    x, lengths = torch.randn(shape), torch.arange(shape[0]) + 1
    wide, more = call.padded(x, lengths)
    assert wide.shape == expected and more.shape == expected[:1]
    assert torch.equal(wide[: shape[0], ..., : shape[-1]], x) and torch.equal(more[: shape[0]], lengths)
    assert wide.count_nonzero() == x.count_nonzero() and not more[shape[0] :].any()


def test_threads_get_their_own_results(graphs):  # noqa: F811
    product, failures = Product(), []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(50):
            x = torch.randn(2, 32, generator=generator)
            if not torch.equal(product.call(product.product, x), product.product(x)):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and graphs.recorded == 1


@pytest.mark.parametrize("denoise", [0.0, 0.2])
def test_a_vocoder_in_buckets_equals_itself_without(graphs, monkeypatch, denoise):  # noqa: F811
    """Padding to a bucket, in frames and in items, changes nothing; nor does what the buffers held before."""
    vocoder = build_vocoder("waveglow", MelConfig(), make_waveglow().double(), 0.5, denoise)
    calls = [([5, 3, 9], 0), ([9, 9, 2], 4), ([7], 0), ([1], 30), ([12, 1, 1], 0), ([31], 11)]
    mels = [torch.randn(len(lengths), 80, max(lengths), dtype=torch.float64) - 4 for lengths, _ in calls]
    monkeypatch.setattr("fastglow.engine.vocoders.LEAST_FULL", 0.0)
    found = [
        vocoder.vocode(mel, lengths, range(len(lengths)), first)
        for mel, (lengths, first) in zip(mels, calls, strict=True)
    ]
    assert (graphs.recorded, graphs.replayed) == (2, 4)
    monkeypatch.setattr(Recorder, "records", False)
    for audio, mel, (lengths, first) in zip(found, mels, calls, strict=True):
        for item, expected in zip(audio, vocoder.vocode(mel, lengths, range(len(lengths)), first), strict=True):
            torch.testing.assert_close(torch.from_numpy(item), torch.from_numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_a_graph_gives_the_bits_of_the_function():
    """Also while others are dropped: at most 3 are kept."""
    product = Product("cuda")
    for n in (2, 2, 2, 4, 4, 8, 8, 8, 16, 16, 2, 2, 16, 4, 4, 4):
        product.check(n)
    assert product.call.memory() > 0
    with torch.no_grad():
        product.model.weight.mul_(2)
    for _ in range(3):
        product.check(2)


@pytest.mark.gpu
@pytest.mark.parametrize("denoise", [0.0, 0.2])
def test_on_a_gpu_a_vocoders_graph_gives_the_bits_of_its_first_call(denoise):
    vocoder = build_vocoder("waveglow", MelConfig(), make_waveglow().cuda(), 0.5, denoise)
    mel = torch.randn(2, 80, 50, device="cuda") - 4
    first, *others = (vocoder.vocode(mel, [50, 33], [1, 2]) for _ in range(4))
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert (a == b).all()
    assert vocoder.call.memory() > 0


@pytest.mark.gpu
def test_nothing_waits_for_the_device_in_a_vocoder():
    vocoder = build_vocoder("waveglow", MelConfig(), make_waveglow().cuda(), 0.5, 0.2)
    mel = torch.randn(1, 80, 50, device="cuda") - 4
    for _ in range(2):
        vocoder.vocode(mel, [50], [1])
    with host_syncs("error"):
        vocoder._vocode(mel, [50], [1], 0)


@pytest.mark.parametrize("name", ["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"])
@pytest.mark.parametrize("ended", [False, True])
def test_what_a_failed_recording_leaves_is_ended(monkeypatch, name, ended):
    """PyTorch ends allocating to the pool itself, or not; the method's name depends on the version."""
    log = []

    def end(device, pool):
        log.append(("end", device, pool))
        if ended:
            raise RuntimeError("not currently recording")

    def capture_end():
        raise RuntimeError("capture failed")

    bindings = {name: end, "_cuda_releasePool": lambda device, pool: log.append(("release", device, pool))}
    monkeypatch.setattr(torch, "_C", SimpleNamespace(**bindings))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    generator = SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=log.append)
    monkeypatch.setattr(torch.cuda, "default_generators", {3: generator})
    _abandon(SimpleNamespace(capture_end=capture_end), (0, 7))
    assert log == [("end", 3, (0, 7)), *([] if ended else [("release", 3, (0, 7))]), "state"]
    log.clear()
    _abandon(SimpleNamespace(capture_end=lambda: None), (0, 7))
    assert log == []


def test_a_pool_is_not_used_again_after_a_failed_recording(graphs, pools):  # noqa: F811
    product = Product()
    for n, fails in ((1, False), (1, False), (2, True), (2, True), (4, False), (4, False)):
        graphs.fails = fails
        product.check(n)
    assert pools == [(0, 0), (0, 0), (0, 1)]


@pytest.mark.gpu
def test_a_failed_recording_leaves_the_device_as_it_was(caplog):
    product = Product("cuda")
    product.waiting = lambda x: x @ product.model.weight.T * x.sum().item()
    product.waiting.__name__ = "waiting"
    x = torch.randn(2, 32, device="cuda")
    for _ in range(2):
        product.check(1)  # a graph that lives when the recording fails
    for _ in range(3):
        torch.testing.assert_close(product.call(product.waiting, x), product.waiting(x), rtol=0, atol=0)
    assert "waiting runs without a CUDA graph" in caplog.text
    for _ in range(3):
        product.check(2)  # records
        torch.cuda.empty_cache()
        torch.randn(3, device="cuda")
    assert product.call.memory() > 0


@pytest.mark.gpu
def test_threads_record_and_replay_at_once():
    """Each thread's first use of a library is not in its recording, whatever thread made the first call."""
    vocoder = build_vocoder("waveglow", MelConfig(), make_waveglow().cuda(), 0.5, 0.2)
    mel = torch.randn(1, 80, 50, device="cuda") - 4
    barrier, found = threading.Barrier(4), [None] * 4

    def speak(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            barrier.wait(timeout=60)
            found[i] = [vocoder.vocode(mel, [50], [1])[0] for _ in range(5)]

    torch.cuda.synchronize()
    threads = [threading.Thread(target=speak, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((one == found[0][0]).all() for several in found for one in several)
    assert not vocoder.call._graphs._entry.values[()].unrecordable
