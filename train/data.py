"""Data sets and batches; every random choice depends on (seed, epoch, item) only."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastglow.errors import FastglowError
from fastglow.text import Lexicon
from fastglow.text.cleaners import clean
from fastglow.text.sequence import EncodedText, encode
from fastglow.text.unspeakable import warn_dropped

from .manifest import Item, PreparedDataset
from .sampler import generator_for


class TextMelItem(NamedTuple):
    id: str
    symbols: Tensor  # ids, [T_in] int64
    mel: np.ndarray  # log-mel, [n_mel_channels, T] float32 or float16, read-only


class SegmentItem(NamedTuple):
    id: str
    samples: np.ndarray  # [at most segment_length] int16, read-only


Example = TypeVar("Example", bound=TextMelItem | SegmentItem, covariant=True)


class SplitDataset(Dataset[Example], ABC):
    """The items of a split, as a model reads them in an epoch.

    Attributes:
        dataset: what `fastglow prepare` wrote.
        items: of the split.
        epoch: 0 until `set_epoch`.
    """

    def __init__(self, dataset: PreparedDataset, split: str):
        self.dataset = dataset
        self.items: Sequence[Item] = dataset.items[split]
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch, and with it the random choices."""
        self.epoch = epoch

    @abstractmethod
    def lengths(self) -> list[int]:
        """The length of each item, by which batches are bucketed."""


class TextMelDataset(SplitDataset[TextMelItem]):
    """Texts and mels for Tacotron 2.

    Args:
        dataset, split: where the items are.
        cleaners: names of text cleaners.
        lexicon: pronunciations; None: all words are letters.
        p_arpabet: probability with which a word of the lexicon is given as phones; drawn in every epoch.
        seed: of those draws.

    Raises:
        FastglowError: the cleaners leave nothing of a text.
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
        super().__init__(dataset, split)
        self.lexicon = lexicon if p_arpabet > 0 else None
        self.p_arpabet = p_arpabet
        self.seed = seed
        self._cleaned: list[str] = []
        encoded: list[Tensor] = []
        for index, item in enumerate(self.items):
            text, dropped = clean(item.text, cleaners)
            self._cleaned.append(text)
            symbols = self._encode(index)
            warn_dropped([*dropped, *symbols.dropped], stacklevel=2)
            if not symbols.ids:
                raise FastglowError(f"{item.id}: {list(cleaners)} leave nothing to speak of {item.text!r}: remove it")
            encoded.append(torch.tensor(symbols.ids))
        # Ids that are the same in each epoch are looked up once.
        self._sequences = None if self._is_drawn else encoded

    def __getitem__(self, index: int) -> TextMelItem:
        item = self.items[index]
        return TextMelItem(item.id, self.sequence(index), self.dataset.mel(item))

    def sequence(self, index: int) -> Tensor:
        """Symbol ids of an item in this epoch, [T_in] int64."""
        return torch.tensor(self._encode(index).ids) if self._sequences is None else self._sequences[index]

    def lengths(self) -> list[int]:
        """In mel frames."""
        return [item.frames for item in self.items]

    @property
    def _is_drawn(self) -> bool:
        return self.lexicon is not None and self.p_arpabet < 1

    def _encode(self, index: int) -> EncodedText:
        lexicon = self.lexicon
        if lexicon is None or not self._is_drawn:
            return encode(self._cleaned[index], pronounce=lexicon)
        generator = np.random.default_rng((self.seed, self.epoch, index))
        return encode(
            self._cleaned[index],
            pronounce=lambda word: lexicon(word) if generator.random() < self.p_arpabet else None,
        )


class SegmentDataset(SplitDataset[SegmentItem]):
    """A random segment of each clip, for WaveGlow; a clip shorter than a segment is whole."""

    def __init__(self, dataset: PreparedDataset, split: str, segment_length: int, seed: int):
        super().__init__(dataset, split)
        self.segment_length = segment_length
        self.seed = seed

    def __getitem__(self, index: int) -> SegmentItem:
        item = self.items[index]
        samples = self.dataset.samples(item)
        generator = generator_for(self.seed, self.epoch, index)
        start = int(torch.randint(max(0, len(samples) - self.segment_length) + 1, (1,), generator=generator))
        return SegmentItem(item.id, samples[start : start + self.segment_length])

    def lengths(self) -> list[int]:
        """In samples."""
        return [self.segment_length] * len(self.items)


@dataclass
class TextMelBatch:
    """A padded batch for Tacotron 2, longest text first."""

    ids: list[str]
    text: Tensor  # [B, T_in] int64
    input_lengths: Tensor  # [B] int64
    mel: Tensor  # [B, n_mel_channels, T] float32, T a multiple of n_frames_per_step
    gate: Tensor  # [B, T] float32, 1 from the last frame on
    output_lengths: Tensor  # [B] int64
    # (input_lengths, output_lengths) on the CPU, where reading them waits for no device; none given: copies.
    lengths_on_host: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        self.lengths_on_host = self.lengths_on_host or (self.input_lengths.cpu(), self.output_lengths.cpu())

    @property
    def n_items(self) -> int:
        """Mel frames without padding, in which the training speed is measured, as in the reference."""
        return int(self.lengths_on_host[1].sum())

    def tensors(self) -> tuple[Tensor, ...]:
        return self.text, self.input_lengths, self.mel, self.gate, self.output_lengths

    def to(self, device: torch.device) -> "TextMelBatch":
        text, input_lengths, mel, gate, output_lengths = (x.to(device, non_blocking=True) for x in self.tensors())
        return TextMelBatch(self.ids, text, input_lengths, mel, gate, output_lengths, self.lengths_on_host)


@dataclass
class SegmentBatch:
    """A batch for WaveGlow."""

    ids: list[str]
    mel: Tensor  # [B, n_mel_channels, segment_length // hop_length + 1] float32
    audio: Tensor  # [B, segment_length] float32 in [-1, 1)

    @property
    def n_items(self) -> int:
        """Samples, in which the training speed is measured, as in the reference."""
        return self.audio.numel()

    def tensors(self) -> tuple[Tensor, ...]:
        return self.mel, self.audio

    def to(self, device: torch.device) -> "SegmentBatch":
        return SegmentBatch(self.ids, *(tensor.to(device, non_blocking=True) for tensor in self.tensors()))
