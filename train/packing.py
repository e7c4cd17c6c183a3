"""Batches on their way from a loader to the device, where they become what a model reads.

What is large travels as it is stored, in one array: mels in their dtype, audio as int16. The device makes the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastglow.audio import MelConfig, MelSpectrogram

from .data import SegmentBatch, SegmentDataset, SegmentItem, TextMelBatch, TextMelDataset, TextMelItem
from .precision import tf32

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""(shape, dtype) -> an array of any values."""

BatchT = TypeVar("BatchT", TextMelBatch, SegmentBatch, covariant=True)
ItemT = TypeVar("ItemT", bound=TextMelItem | SegmentItem, contravariant=True)
DataT = TypeVar("DataT", bound=TextMelDataset | SegmentDataset, contravariant=True)


@dataclass
class Packed(ABC, Generic[BatchT]):
    """A batch in the host's memory.

    Attributes:
        ids: of the items.
        bulk: the large array.
    """

    ids: list[str]
    bulk: np.ndarray

    @abstractmethod
    def to(self, device: torch.device) -> BatchT:
        """The batch on a device, in memory of its own. The host does not wait for a GPU if `bulk` is pinned."""


class Packing(ABC, Generic[DataT, ItemT, BatchT]):
    """Makes batches of a model."""

    @abstractmethod
    def __call__(self, items: Sequence[ItemT], allocate: Allocate = np.empty) -> Packed[BatchT]: ...

    @abstractmethod
    def max_bytes(self, dataset: DataT, n_items: int) -> int:
        """Bytes of `bulk` in the largest batch of `n_items`."""


@dataclass
class PackedTextMels(Packed[TextMelBatch]):
    """
    Attributes:
        bulk: mels [B, n_mel_channels, T], float32 or float16, padded with zeros.
        numbers: [B, 2 + T_in] int32: numbers of symbols and of frames, and the symbols, padded with zeros.
    """

    numbers: np.ndarray

    def to(self, device: torch.device) -> TextMelBatch:
        numbers = _moved(self.numbers, device).long()
        input_lengths, output_lengths, text = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
        mel = _moved(self.bulk, device).float()
        gate = (torch.arange(mel.shape[2], device=device) >= output_lengths[:, None] - 1).float()
        on_host = tuple(torch.from_numpy(self.numbers[:, i].astype(np.int64)) for i in (0, 1))
        lengths = input_lengths.contiguous(), output_lengths.contiguous()
        return TextMelBatch(self.ids, text.contiguous(), lengths[0], mel, gate, lengths[1], on_host)


@dataclass
class TextMelPacking(Packing[TextMelDataset, TextMelItem, TextMelBatch]):
    """Pads texts and mels, the longest text first."""

    n_frames_per_step: int

    def __call__(self, items: Sequence[TextMelItem], allocate: Allocate = np.empty) -> PackedTextMels:
        items = sorted(items, key=lambda item: len(item.symbols), reverse=True)
        lengths = [item.mel.shape[1] for item in items]
        first = items[0].mel
        mels = allocate((len(items), first.shape[0], self._padded(max(lengths))), first.dtype)
        numbers = np.zeros((len(items), 2 + len(items[0].symbols)), np.int32)
        for i, ((_, symbols, mel), length) in enumerate(zip(items, lengths, strict=True)):
            mels[i, :, :length] = mel
            mels[i, :, length:] = 0
            numbers[i, :2] = len(symbols), length
            numbers[i, 2 : 2 + len(symbols)] = symbols.numpy()
        return PackedTextMels([item.id for item in items], mels, numbers)

    def max_bytes(self, dataset: TextMelDataset, n_items: int) -> int:
        longest = max(dataset.lengths())
        channels = dataset.dataset.audio.n_mel_channels
        return n_items * channels * self._padded(longest) * dataset[0].mel.itemsize

    def _padded(self, frames: int) -> int:
        return -(-frames // self.n_frames_per_step) * self.n_frames_per_step


@dataclass
class PackedSegments(Packed[SegmentBatch]):
    """
    Attributes:
        bulk: [B, segment_length] int16, padded with zeros.
        audio: of the mels.
    """

    audio: MelConfig

    def to(self, device: torch.device) -> SegmentBatch:
        audio = _moved(self.bulk, device).float() / 32768
        with tf32(False):
            mel = mel_spectrogram(self.audio).within_range(audio)
        return SegmentBatch(self.ids, mel, audio)


@dataclass
class SegmentPacking(Packing[SegmentDataset, SegmentItem, SegmentBatch]):
    """Pads segments; the device computes their mels, in float32."""

    segment_length: int
    audio: MelConfig

    def __call__(self, items: Sequence[SegmentItem], allocate: Allocate = np.empty) -> PackedSegments:
        segments = allocate((len(items), self.segment_length), np.dtype(np.int16))
        for i, (_, samples) in enumerate(items):
            segments[i, : len(samples)] = samples
            segments[i, len(samples) :] = 0
        return PackedSegments([item.id for item in items], segments, self.audio)

    def max_bytes(self, dataset: SegmentDataset, n_items: int) -> int:
        return n_items * self.segment_length * np.dtype(np.int16).itemsize


@lru_cache(maxsize=4)
def mel_spectrogram(config: MelConfig) -> MelSpectrogram:
    """One for all batches, since it keeps constants on each device."""
    return MelSpectrogram.from_config(config)


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # itself if it is pinned already
    return tensor.to(device, non_blocking=True, copy=True)
