"""Data sets, batches and their order; every random choice depends on (seed, epoch, item) only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fastglow.audio import MelSpectrogram
from fastglow.errors import FastglowError
from fastglow.text import Lexicon, text_to_sequence
from fastglow.text.cleaners import find_cleaner

from .manifest import PreparedDataset


def generator_for(*key: int) -> torch.Generator:
    """A generator whose numbers depend on `key` only."""
    state = np.random.SeedSequence([abs(k) for k in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


class TextMelDataset(Dataset):
    """(item id, symbol ids [T_in] int64, log-mel [n_mel_channels, T] float32) of every item of a split.

    A word that `lexicon` has is given as phones with probability `p_arpabet`; `epoch` picks which.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        split: str,
        cleaners: Sequence[str],
        lexicon: Lexicon | None = None,
        p_arpabet: float = 1.0,
        seed: int = 0,
    ):
        self.dataset = dataset
        self.items = dataset.items[split]
        self.lexicon = lexicon
        self.p_arpabet = p_arpabet
        self.seed = seed
        self.epoch = 0
        self.cleaned = [item.text for item in self.items]
        for name in cleaners:
            self.cleaned = [find_cleaner(name)(text) for text in self.cleaned]
        for index, item in enumerate(self.items):
            if len(self.sequence(index)) == 0:
                raise FastglowError(f"{item.id}: {list(cleaners)} leave nothing to speak of {item.text!r}: remove it")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor]:
        item = self.items[index]
        return item.id, self.sequence(index), torch.from_numpy(self.dataset.mel(item))

    def sequence(self, index: int) -> Tensor:
        """Symbol ids of an item in this epoch."""
        generator = np.random.default_rng((self.seed, self.epoch, index))

        def pronounce(word: str) -> str | None:
            return self.lexicon(word) if generator.random() < self.p_arpabet else None

        return torch.tensor(text_to_sequence(self.cleaned[index], [], None if self.lexicon is None else pronounce))

    def lengths(self) -> list[int]:
        return [item.frames for item in self.items]


class SegmentDataset(Dataset):
    """(item id, log-mel, audio) of one random segment of every item of a split; audio is [segment_length].

    Clips shorter than a segment are padded with zeros. `epoch` picks the segments.
    """

    def __init__(self, dataset: PreparedDataset, split: str, segment_length: int, seed: int):
        self.dataset = dataset
        self.items = dataset.items[split]
        self.segment_length = segment_length
        self.seed = seed
        self.epoch = 0
        self.mel_spectrogram = MelSpectrogram.from_config(dataset.audio)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor]:
        item = self.items[index]
        samples = self.dataset.samples(item)
        generator = generator_for(self.seed, self.epoch, index)
        start = int(torch.randint(max(0, len(samples) - self.segment_length) + 1, (1,), generator=generator))
        segment = np.asarray(samples[start : start + self.segment_length], dtype=np.float32) / 32768.0
        audio = torch.zeros(self.segment_length)
        audio[: len(segment)] = torch.from_numpy(segment)
        return item.id, self.mel_spectrogram(audio.unsqueeze(0))[0], audio

    def lengths(self) -> list[int]:
        return [self.segment_length] * len(self.items)


@dataclass
class TextMelBatch:
    """A padded batch of Tacotron 2, longest text first."""

    ids: list[str]
    text: Tensor  # [B, T_in] int64
    input_lengths: Tensor  # [B]
    mel: Tensor  # [B, n_mel_channels, T], T a multiple of n_frames_per_step
    gate: Tensor  # [B, T], 1 from the last frame on
    output_lengths: Tensor  # [B]

    def to(self, device: torch.device) -> "TextMelBatch":
        tensors = (self.text, self.input_lengths, self.mel, self.gate, self.output_lengths)
        return TextMelBatch(self.ids, *(t.to(device, non_blocking=True) for t in tensors))

    @property
    def n_items(self) -> int:
        """Mel frames without padding: the unit of the training speed, as in the reference."""
        return int(self.output_lengths.sum())


@dataclass
class TextMelCollate:
    """Pads (id, text, mel) items to a `TextMelBatch`."""

    n_frames_per_step: int

    def __call__(self, items: list[tuple[str, Tensor, Tensor]]) -> TextMelBatch:
        items = sorted(items, key=lambda item: len(item[1]), reverse=True)
        r = self.n_frames_per_step
        max_frames = -(-max(mel.shape[1] for _, _, mel in items) // r) * r
        batch = TextMelBatch(
            ids=[item_id for item_id, _, _ in items],
            text=torch.zeros(len(items), len(items[0][1]), dtype=torch.int64),
            input_lengths=torch.tensor([len(text) for _, text, _ in items]),
            mel=torch.zeros(len(items), items[0][2].shape[0], max_frames),
            gate=torch.zeros(len(items), max_frames),
            output_lengths=torch.tensor([mel.shape[1] for _, _, mel in items]),
        )
        for i, (_, text, mel) in enumerate(items):
            batch.text[i, : len(text)] = text
            batch.mel[i, :, : mel.shape[1]] = mel
            batch.gate[i, mel.shape[1] - 1 :] = 1
        return batch


@dataclass
class SegmentBatch:
    """A batch of WaveGlow."""

    ids: list[str]
    mel: Tensor  # [B, n_mel_channels, segment_length // hop_length + 1]
    audio: Tensor  # [B, segment_length]

    def to(self, device: torch.device) -> "SegmentBatch":
        return SegmentBatch(self.ids, self.mel.to(device, non_blocking=True), self.audio.to(device, non_blocking=True))

    @property
    def n_items(self) -> int:
        """Samples: the unit of the training speed, as in the reference."""
        return self.audio.numel()


def collate_segments(items: list[tuple[str, Tensor, Tensor]]) -> SegmentBatch:
    """Stacks (id, mel, audio) items."""
    ids, mels, audio = zip(*items, strict=True)
    return SegmentBatch(list(ids), torch.stack(mels), torch.stack(audio))


class EpochBatchSampler(Sampler[list[int]]):
    """The batches of an epoch in an order that depends on (seed, epoch) only, from batch `start` on.

    Full batches only, as in the reference, unless there are fewer items than a batch holds.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, bucket_batches: int = 0):
        self.lengths = lengths
        self.batch_size = min(batch_size, len(lengths))
        self.seed = seed
        self.bucket_batches = bucket_batches
        self.epoch = 0
        self.start = 0

    @property
    def batches_per_epoch(self) -> int:
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[int]]:
        generator = generator_for(self.seed, self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        order = order[: self.batches_per_epoch * self.batch_size]
        if self.bucket_batches > 1:
            size = self.bucket_batches * self.batch_size
            buckets = [order[i : i + size] for i in range(0, len(order), size)]
            order = [i for bucket in buckets for i in sorted(bucket, key=lambda i: self.lengths[i])]
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if self.bucket_batches > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        yield from batches[self.start :]
