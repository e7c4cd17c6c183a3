"""Loaders alone: how fast batches of a prepared data set are made.

A call is an epoch. On a CPU it ends with batches in the host's memory, WaveGlow's as int16, since the device computes
their mels; on a GPU with batches that are ready there. The files are in the page cache.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fastglow.train.data import SegmentDataset, SplitDataset, TextMelDataset
from fastglow.train.loading import Loader
from fastglow.train.packing import Packed, Packing, SegmentPacking, TextMelPacking, mel_spectrogram

from . import loader_data, peer_loaders
from .environment import device, has_gpu
from .loader_data import Sizes
from .test_bench_train_step import LONGEST, SHORTEST
from .workload import EPOCH, FASTGLOW, PEER, Cost, Implementation, Workload, cases

LJSPEECH = Sizes(256, LONGEST, SHORTEST)
SMALL = Sizes(9, (14, 12), (3, 6))

WORKERS = (0, 1, 2)

OPEN = ExitStack()
"""The loaders of a benchmark, whose processes end with it."""


@dataclass(frozen=True)
class Loading(Workload):
    """
    Attributes:
        n_batches, batch: of an epoch, and their items.
        workers: processes.
        sizes: of the data set.
    """

    case: str
    n_batches: int
    batch: int
    workers: int
    sizes: Sizes = LJSPEECH

    op = "loader"
    directions = (EPOCH,)
    composed = True  # launches no kernel
    bounded = False
    model = ""
    segment_length = 0

    @property
    def small(self) -> bool:  # type: ignore[override]  # a field in other workloads
        return self.sizes == SMALL

    @property
    def name(self) -> str:
        return f"{self.case}-{self.dtype_name}-workers-{self.workers}"

    def runs(self, small: bool) -> bool:
        return small == self.small

    def supports(self, implementation: str) -> bool:
        return implementation in (FASTGLOW, PEER)

    def capturable(self, direction: str) -> bool:
        return False

    def indices(self) -> list[list[int]]:
        random = np.random.default_rng(1)
        return [random.permutation(self.sizes.n_items)[: self.batch].tolist() for _ in range(self.n_batches)]

    @abstractmethod
    def data(self) -> tuple[SplitDataset, Packing]: ...

    @abstractmethod
    def check(self, packed: Packed, indices: Sequence[int]) -> None:
        """Compares one of fastglow's batches with the data set."""

    @abstractmethod
    def check_nvidia(self, batch: Sequence[torch.Tensor], indices: Sequence[int]) -> None:
        """The same of NVIDIA's."""

    def loader(self) -> Loader:
        return OPEN.enter_context(Loader(*self.data(), self.batch, device(), self.workers))

    def call(self, implementation: Implementation, direction: str) -> Callable[[], object]:
        epoch = _epoch(self, implementation)
        epoch()  # starts the processes, fills the page cache
        return epoch

    def verify(self, implementation: Implementation, direction: str) -> float:
        indices = self.indices()
        if implementation.name == PEER:
            batches, _ = _nvidia(self, implementation)
            for batch, of_batch in zip(batches, indices, strict=True):
                self.check_nvidia(batch, of_batch)
        else:
            for packed, of_batch in zip(self.loader().packed(0, indices), indices, strict=True):
                self.check(packed, of_batch)
        return 0.0


@cache
def _nvidia(workload: Loading, implementation: Implementation) -> tuple[DataLoader, Callable[[object], object]]:
    return peer_loaders.loader(
        implementation.nvidia.folder,
        workload.model,
        loader_data.for_nvidia(workload.sizes),
        loader_data.prepared(workload.sizes).audio,
        workload.indices(),
        workload.workers,
        workload.segment_length,
    )


@cache
def _epoch(workload: Loading, implementation: Implementation) -> Callable[[], None]:
    """Loads an epoch; one for all sets of inputs that a benchmark on a GPU asks for."""
    indices = workload.indices()
    if implementation.name == PEER:
        batches, to_gpu = _nvidia(workload, implementation)

        def epoch() -> None:
            for batch in batches:
                if has_gpu():
                    to_gpu(batch)
    else:
        loader = workload.loader()

        def epoch() -> None:
            for _ in loader.epoch(0, indices) if has_gpu() else loader.packed(0, indices):
                pass

    return epoch


@dataclass(frozen=True)
class SegmentLoading(Loading):
    """WaveGlow's: segments of `segment_length` samples."""

    segment_length: int = 8000

    model = "waveglow"
    dtype = torch.int16

    def data(self) -> tuple[SegmentDataset, SegmentPacking]:
        dataset = loader_data.prepared(self.sizes)
        return SegmentDataset(dataset, "train", self.segment_length, seed=1), SegmentPacking(
            self.segment_length, dataset.audio
        )

    def shapes(self) -> dict[str, list[int]]:
        return {"audio": [self.batch, self.segment_length]}

    def samples(self, direction: str) -> int:
        return self.n_batches * self.batch * self.segment_length

    def cost(self, direction: str) -> Cost:
        return Cost(2 * 2 * self.samples(direction), 0)

    def targets(self, direction: str) -> dict[str, float]:
        return {} if self.small or has_gpu() else {"samples_per_second": 5e6}

    def check(self, packed: Packed, indices: Sequence[int]) -> None:
        dataset, _ = self.data()
        for item_id, segment, i in zip(packed.ids, packed.bulk, indices, strict=True):
            assert item_id == dataset.items[i].id
            samples = dataset.dataset.samples(dataset.items[i])[: len(dataset[i].samples)]
            assert np.array_equal(segment[: len(samples)], dataset[i].samples) and not segment[len(samples) :].any()

    def check_nvidia(self, batch: Sequence[torch.Tensor], indices: Sequence[int]) -> None:
        mels, audio, _ = batch
        assert list(audio.shape) == self.shapes()["audio"]
        mel_of = mel_spectrogram(loader_data.prepared(self.sizes).audio)
        torch.testing.assert_close(mels.exp(), mel_of(audio).exp(), rtol=1e-3, atol=1e-4)


@dataclass(frozen=True)
class TextMelLoading(Loading):
    """Tacotron 2's: texts and mels."""

    model = "tacotron2"
    dtype = torch.float32

    def data(self) -> tuple[TextMelDataset, TextMelPacking]:
        return TextMelDataset(loader_data.prepared(self.sizes), "train", ["basic_cleaners"]), TextMelPacking(1)

    def shapes(self) -> dict[str, list[int]]:
        return {"mel": [self.batch, 80, self.sizes.longest[1]]}

    def frames(self, direction: str) -> int:
        items = loader_data.prepared(self.sizes).items["train"]
        return sum(items[i].frames for indices in self.indices() for i in indices)

    def cost(self, direction: str) -> Cost:
        return Cost(2 * 4 * 80 * self.frames(direction), 0)

    def targets(self, direction: str) -> dict[str, float]:
        return {} if self.small or has_gpu() else {"frames_per_second": 2e6}

    def check(self, packed: Packed, indices: Sequence[int]) -> None:
        items = {item.id: item for item in loader_data.prepared(self.sizes).items["train"]}
        assert sorted(packed.ids) == sorted(list(items)[i] for i in indices)
        for item_id, mel in zip(packed.ids, packed.bulk, strict=True):
            expected = loader_data.prepared(self.sizes).mel(items[item_id])
            assert np.array_equal(mel[:, : expected.shape[1]], expected) and not mel[:, expected.shape[1] :].any()

    def check_nvidia(self, batch: Sequence[torch.Tensor], indices: Sequence[int]) -> None:
        _, _, mels, _, lengths, _ = batch
        dataset = loader_data.prepared(self.sizes)
        by_frames = {item.frames: item for item in (dataset.items["train"][i] for i in indices)}  # all differ
        assert sorted(lengths.tolist()) == sorted(by_frames)
        for frames, mel in zip(lengths.tolist(), mels, strict=True):
            assert np.array_equal(mel[:, :frames].numpy(), dataset.mel(by_frames[frames]))


def workloads(published: Loading, small: Loading) -> list[Loading]:
    return [replace(of, workers=workers) for of in (published, small) for workers in WORKERS]


WAVEGLOW = workloads(
    SegmentLoading("waveglow-10x8000", n_batches=100, batch=10, workers=0),
    SegmentLoading("waveglow-small", n_batches=3, batch=2, workers=0, sizes=SMALL, segment_length=2000),
)
TACOTRON2 = workloads(
    TextMelLoading("tacotron2-128", n_batches=12, batch=128, workers=0),
    TextMelLoading("tacotron2-small", n_batches=3, batch=2, workers=0, sizes=SMALL),
)
WORKLOADS = [*WAVEGLOW, *TACOTRON2]


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    yield
    _epoch.cache_clear()
    _nvidia.cache_clear()
    OPEN.close()


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_loader(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
