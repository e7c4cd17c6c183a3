"""Decodes symbols to mels, and retries faulty utterances with other seeds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastglow.models import Tacotron2
from fastglow.models.tacotron2 import DecoderStepLimitWarning

from .reading import Fault, Reading, judge, steps_to_keep
from .seeds import attempt_seed

MAX_ATTEMPTS = 4
# The first decoding of a sentence has a step limit for very slow speech, 4 symbols per second; usual are 10 to 15. A
# sentence that does not end within it is decoded again with a limit of max_decoder_steps.
SECONDS_PER_SYMBOL, EXTRA_SECONDS = 0.25, 3.0


@dataclass(frozen=True)
class Task:
    """A sentence to decode.

    Attributes:
        symbols: ids.
        n_sounding: number of symbols up to the last that has a sound.
        seed: of the first attempt.
    """

    symbols: list[int]
    n_sounding: int
    seed: int


@dataclass(frozen=True)
class Utterance:
    """The decoded sentence.

    Attributes:
        mel: log-mel, [n_mel_channels, frames], on the model's device.
        alignment: attention weights, float32 [decoder steps, symbols].
        stopped, readings, cut: as in `Sentence`.
        fault: its worst fault.
    """

    mel: Tensor
    alignment: np.ndarray
    stopped: bool
    readings: tuple[Reading, ...]
    cut: bool
    fault: Fault

    @property
    def attempts(self) -> int:
        return len(self.readings)


class _Decoded(NamedTuple):
    mel: Tensor  # [n_mel_channels, frames]
    alignment: np.ndarray  # [steps, symbols]
    stopped: bool  # the gate fired


class _Attempt(NamedTuple):
    decoded: _Decoded
    reading: Reading


def decode_utterances(tacotron2: Tacotron2, tasks: Sequence[Task], seconds_per_frame: float) -> list[Utterance]:
    """Decodes the tasks as a batch, then decodes the faulty ones again with other seeds.

    A task's result is its first attempt without a fault. If every attempt has one, it is the best attempt, cut after
    the end of its text if it runs on. Except for rounding, it does not depend on the other tasks.
    """
    config = tacotron2.config
    seconds_per_step = seconds_per_frame * config.n_frames_per_step
    most = config.max_decoder_steps
    limits = [_first_limit(len(task.symbols), seconds_per_step, most) for task in tasks]
    attempts: list[list[_Attempt]] = [[] for _ in tasks]
    pending = list(range(len(tasks)))
    while pending:
        seeds = [attempt_seed(tasks[i].seed, len(attempts[i])) for i in pending]
        batch = _decode(tacotron2, [tasks[i].symbols for i in pending], seeds, [limits[i] for i in pending])
        again = []
        for i, decoded in zip(pending, batch, strict=True):
            reading = judge(decoded.alignment, tasks[i].n_sounding, decoded.stopped, seconds_per_step)
            if reading.fault >= Fault.UNFINISHED and limits[i] < most:
                limits[i] = most
                again.append(i)
                continue
            attempts[i].append(_Attempt(decoded, reading))
            if len(attempts[i]) < MAX_ATTEMPTS and _another_seed_may_help(reading, len(attempts[i])):
                again.append(i)
        pending = again
    return [_best(made, seconds_per_step) for made in attempts]


def _another_seed_may_help(reading: Reading, n_attempts: int) -> bool:
    """False if the text needs more steps, or if no attempt had legible attention."""
    if not reading.legible:
        return n_attempts > 1  # an earlier attempt was legible
    return reading.fault not in (Fault.NONE, Fault.TOO_LONG)


def _first_limit(n_symbols: int, seconds_per_step: float, most: int) -> int:
    return min(most, ceil((EXTRA_SECONDS + SECONDS_PER_SYMBOL * n_symbols) / seconds_per_step))


def _decode(tacotron2: Tacotron2, texts: list[list[int]], seeds: list[int], limits: list[int]) -> list[_Decoded]:
    device = tacotron2.embedding.weight.device
    lengths = torch.tensor([len(symbols) for symbols in texts])
    text = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, symbols in zip(text, texts, strict=True):
        row[: len(symbols)] = torch.tensor(symbols)
    with warnings.catch_warnings():
        # The synthesizer issues its own warning, which names sentences instead of batch items.
        warnings.simplefilter("ignore", DecoderStepLimitWarning)
        mels, mel_lengths, alignments = tacotron2.infer(
            text.to(device), lengths.to(device), seed=seeds, max_steps=limits
        )
    results = []
    for i, n_frames in enumerate(mel_lengths.tolist()):
        n_steps = n_frames // tacotron2.config.n_frames_per_step
        alignment = alignments[i, :n_steps, : len(texts[i])].float().cpu().numpy()
        results.append(_Decoded(mels[i, :, :n_frames], alignment, n_steps < limits[i]))
    return results


def _best(attempts: list[_Attempt], seconds_per_step: float) -> Utterance:
    """The earliest of the least wrong attempts, cut if it runs on."""
    (mel, alignment, stopped), reading = min(attempts, key=lambda attempt: attempt.reading.rank)
    readings = tuple(attempt.reading for attempt in attempts)
    if reading.end is None:
        return Utterance(mel, alignment, stopped, readings, False, reading.fault)
    loudness = mel.float().mean(dim=0).view(len(alignment), -1).mean(dim=1).cpu().numpy()
    n_steps = steps_to_keep(reading.end, loudness, seconds_per_step)
    n_frames = n_steps * (mel.shape[1] // len(alignment))
    return Utterance(mel[:, :n_frames], alignment[:n_steps], False, readings, True, reading.fault)
