"""Loaders: the same batches from any number of processes, which live as long as the loader."""

import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.text import Lexicon
from fastglow.train.checkpointing import load_training_checkpoint
from fastglow.train.data import SegmentDataset, TextMelDataset
from fastglow.train.loading import DevicePrefetcher, Loader
from fastglow.train.manifest import PreparedDataset
from fastglow.train.packing import SegmentPacking, TextMelPacking
from fastglow.train.sampler import Sharing, StepSampler, Stretch
from fastglow.train.step import TrainStep

from .conftest import MODELS, run

# On a machine with fewer cores than a test has workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

CPU = torch.device("cpu")

SIZE = 2


@pytest.fixture
def data(prepared, lexicon_file):
    """model -> (data set whose batches differ between epochs, packing)."""
    dataset = PreparedDataset.open(prepared)

    def of(model):
        if model == "tacotron2":
            cleaners = ["english_cleaners"]
            return TextMelDataset(dataset, "train", cleaners, Lexicon(lexicon_file), 0.5), TextMelPacking(3)
        return SegmentDataset(dataset, "train", 1100, seed=3), SegmentPacking(1100, dataset.audio)

    return of


def indices_of(dataset, epoch, done=()):
    sampler = StepSampler(dataset.lengths(), Sharing(SIZE), seed=1)
    sampler.start_epoch(epoch, done)
    return list(sampler)


def made_here(data, epoch, indices):
    """The batches, without a loader."""
    dataset, packing = data
    dataset.set_epoch(epoch)
    return [packing([dataset[i] for i in batch]).to(CPU) for batch in indices]


def assert_equal(found, expected):
    assert [batch.ids for batch in found] == [batch.ids for batch in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.n_items == b.n_items
        assert all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_batches_depend_on_epoch_and_indices_only(data, model, workers):
    expected = {epoch: made_here(data(model), epoch, indices_of(data(model)[0], epoch)) for epoch in range(4)}
    assert any(
        not torch.equal(a.tensors()[0], b.tensors()[0])
        for a in expected[0]
        for b in made_here(data(model), 1, indices_of(data(model)[0], 0))
        if a.ids == b.ids
    ), "the epochs have the same random choices"
    dataset, packing = data(model)
    with Loader(dataset, packing, SIZE, CPU, workers) as loader:
        for epoch in (0, 1, 2):
            assert_equal(list(loader.epoch(epoch, indices_of(dataset, epoch))), expected[epoch])
        in_the_middle = indices_of(dataset, 2, [Stretch(SIZE, 1)])
        assert in_the_middle == indices_of(dataset, 2)[1:]
        assert_equal(list(loader.epoch(2, in_the_middle)), expected[2][1:])
        for _ in range(3):  # more than there are buffers
            left = loader.epoch(3, indices_of(dataset, 3))
            assert_equal([next(left)], expected[3][:1])
        assert_equal(list(loader.epoch(1, indices_of(dataset, 1))), expected[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_no_shared_generator_is_drawn_from(data, workers):
    dataset, packing = data("waveglow")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with Loader(dataset, packing, SIZE, CPU, workers) as loader:
        for epoch in range(2):
            list(loader.epoch(epoch, indices_of(dataset, epoch)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def open_files(pids):
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}


def shared_memory(pids):
    """What the processes map of /dev/shm."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return sorted(line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line)


@pytest.mark.parametrize("model", MODELS)
def test_the_processes_stay_and_open_no_files(data, model):
    dataset, packing = data(model)
    with Loader(dataset, packing, SIZE, CPU, 2) as loader:
        list(loader.epoch(0, indices_of(dataset, 0)))
        workers = {process.pid for process in multiprocessing.active_children()}
        assert len(workers) == 2
        everyone = [os.getpid(), *workers]
        files, mapped = open_files(everyone), shared_memory(everyone)
        assert all("/dev/shm/sem." in name for name in mapped), "more than the semaphores of queues"
        for epoch in range(1, 6):
            kept = list(loader.epoch(epoch, indices_of(dataset, epoch)))
            assert len(kept) == len(indices_of(dataset, epoch))
        assert {process.pid for process in multiprocessing.active_children()} == workers
        assert open_files(everyone) == files
        assert shared_memory(everyone) == mapped
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("model", MODELS)
def test_runs_are_equal_with_any_number_of_processes_and_resumed(model, prepared, lexicon_file, tmp_path):
    """Over three epochs, resumed within the second."""
    options = {"epochs_per_validation": 1}
    if model == "tacotron2":
        options |= {"lexicon": str(lexicon_file), "p_arpabet": 0.5}
    plain = run(model, prepared, tmp_path / "0", max_iterations=8, **options)
    paths = [run(model, prepared, tmp_path / f"{n}", max_iterations=8, num_workers=n, **options) for n in (1, 2)]
    run(model, prepared, tmp_path / "parts", max_iterations=5, num_workers=2, **options)
    paths.append(run(model, prepared, tmp_path / "parts", max_iterations=8, num_workers=2, resume=True, **options))
    plain, *others = (load_training_checkpoint(path, model) for path in (plain, *paths))
    assert plain["epoch"] == 2
    for other in others:
        assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in plain["state_dict"].items())
        assert torch.equal(plain["random_state"]["torch"], other["random_state"]["torch"])
    assert not multiprocessing.active_children()


def test_a_run_has_the_same_processes_in_each_epoch(prepared, tmp_path, monkeypatch):
    seen = []
    step = TrainStep.__call__

    def look(self, *args, **options):
        seen.append((self.state.epoch, {process.pid for process in multiprocessing.active_children()}))
        return step(self, *args, **options)

    monkeypatch.setattr(TrainStep, "__call__", look)
    run("waveglow", prepared, tmp_path, max_iterations=8, num_workers=2, epochs_per_validation=1)
    assert {epoch for epoch, _ in seen} == {0, 1, 2}
    assert len(seen[0][1]) == 2 and all(pids == seen[0][1] for _, pids in seen)
    assert not multiprocessing.active_children()


def test_the_processes_of_a_run_that_fails_end(prepared, tmp_path, monkeypatch):
    step = TrainStep.__call__

    def fail(self, *args, **options):
        if self.state.iteration == 4:
            raise ValueError("broken")
        return step(self, *args, **options)

    monkeypatch.setattr(TrainStep, "__call__", fail)
    with pytest.raises(ValueError, match="broken"):
        run("waveglow", prepared, tmp_path, max_iterations=8, num_workers=2)
    assert not multiprocessing.active_children()


class Failing(SegmentDataset):
    """Some items cannot be read."""

    bad = ()

    def __getitem__(self, index):
        if index in self.bad:
            raise FastglowError(f"{self.items[index].id} cannot be read: remove it")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_comes_in_place_of_its_batch(prepared, workers):
    dataset = PreparedDataset.open(prepared)
    failing = Failing(dataset, "train", 1100, seed=3)
    failing.bad = (2,)
    with Loader(failing, SegmentPacking(1100, dataset.audio), SIZE, CPU, workers) as loader:
        for _ in range(2):  # the loader can be used again
            batches = loader.epoch(0, [[0, 1], [3, 4], [5, 2], [6, 0]])
            assert [next(batches).ids for _ in range(2)] == [
                [failing.items[i].id for i in indices] for indices in ([0, 1], [3, 4])
            ]
            with pytest.raises(FastglowError, match=f"^{failing.items[2].id} cannot be read: remove it$"):
                next(batches)


class Number:
    """A batch on the host, of one number."""

    def __init__(self, value, log):
        self.value = torch.full((1000,), float(value))
        self.log = log

    def to(self, device):
        self.log.append(("moved", int(self.value[0])))
        return Numbers(self.value.to(device, non_blocking=True))


class Numbers:
    def __init__(self, value):
        self.value = value

    def tensors(self):
        return (self.value,)


def numbers(n, log, bad=None):
    for i in range(n):
        if i == bad:
            raise ValueError(f"{i} is bad")
        log.append(("read", i))
        yield Number(i, log)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("ahead", [None, 0, 1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_prefetched_batches_come_once_and_in_order(ahead, n, device):
    log = []
    prefetcher = DevicePrefetcher(numbers(n, log), torch.device(device), ahead=ahead)
    further = prefetcher.ahead
    assert further == (ahead if ahead is not None else int(device == "cuda"))
    for i, batch in enumerate(prefetcher):
        assert log == [event for j in range(min(n, i + 1 + further)) for event in (("read", j), ("moved", j))]
        assert batch.value.device.type == device
        assert batch.value.tolist() == [i] * 1000
    assert len(log) == 2 * n


@pytest.mark.parametrize("ahead", [0, 1, 3, 10])
@pytest.mark.parametrize("bad", [0, 1, 4])
def test_an_error_comes_after_the_batches_before_it(ahead, bad):
    batches = iter(DevicePrefetcher(numbers(6, [], bad), CPU, ahead=ahead))
    for i in range(bad):
        assert next(batches).value[0] == i
    with pytest.raises(ValueError, match=f"{bad} is bad"):
        next(batches)
    assert list(batches) == []


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("model", MODELS)
def test_a_slow_gpu_reads_each_batch_before_its_memory_is_used_again(data, model, workers):
    """Results are read at the end, after hundreds of batches whose memory was freed while the GPU was far behind."""
    dataset, packing = data(model)
    indices = [batch for epoch in range(20) for batch in indices_of(dataset, epoch)]
    expected = made_here((dataset, packing), 7, indices)
    device, kept = torch.device("cuda"), []
    with Loader(dataset, packing, SIZE, device, workers) as loader:
        for batch in loader.epoch(7, indices):
            torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
            kept.append([tensor.clone() for tensor in batch.tensors()])
            del batch
    for found, batch in zip(kept, expected, strict=True):
        for i, (a, b) in enumerate(zip(found, batch.tensors(), strict=True)):
            if model == "waveglow" and i == 0:  # an FFT, see MelSpectrogram
                torch.testing.assert_close(a.cpu().exp(), b.exp(), rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(a.cpu(), b)


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_the_host_waits_for_no_gpu(data, model):
    dataset, packing = data(model)
    device = torch.device("cuda")
    with Loader(dataset, packing, SIZE, device) as loader:
        batches = loader.epoch(0, indices_of(dataset, 0))
        next(batches)  # makes the mel's constants
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(2):
                batch = next(batches)
                assert batch.n_items > 0
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_buffers_for_a_gpu_are_pinned(data):
    dataset, packing = data("tacotron2")
    with Loader(dataset, packing, SIZE, torch.device("cuda"), 2) as loader:
        for _ in range(2):
            for packed in loader.packed(0, indices_of(dataset, 0)):
                assert torch.from_numpy(packed.bulk).is_pinned()
    assert not torch.from_numpy(packed.bulk).is_pinned()
