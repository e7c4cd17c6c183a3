"""From symbols to mels, with further attempts at utterances that went wrong."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from fastglow.models import Tacotron2
from fastglow.models.tacotron2 import DecoderStepLimitWarning

from .reading import Fault, Reading, cut_behind, judge
from .seeds import attempt_seed

MAX_ATTEMPTS = 4
# The first look at an utterance takes no more steps than a very slow reader needs; speech goes on at 10 to 15
# symbols a second. What has not come to the text's end by then is given all of max_decoder_steps.
SECONDS_PER_SYMBOL, SECONDS_BESIDES = 0.25, 3.0


@dataclass
class Task:
    """
    Attributes:
        symbols: ids.
        n_sounding: number of symbols up to the last that has a sound.
        seed: of the first attempt.
    """

    symbols: list[int]
    n_sounding: int
    seed: int


@dataclass
class Utterance:
    """
    Attributes:
        mel: log-mel, [n_mel_channels, frames], on the model's device.
        alignment: attention weights, float32 [decoder steps, symbols].
        stopped, attempts, cut: as in `Sentence`.
        fault: the worst that is wrong with it.
    """

    mel: Tensor
    alignment: np.ndarray
    stopped: bool
    attempts: int
    cut: bool
    fault: Fault


def utter(tacotron2: Tacotron2, tasks: Sequence[Task], seconds_per_frame: float) -> list[Utterance]:
    """Decodes the tasks together, and those that went wrong again with other seeds.

    A task's result depends on that task alone, but for rounding. The first attempt that nothing is wrong with is
    taken as it is; if there is none, the best one, cut behind the end of its text if it runs on.
    """
    config = tacotron2.config
    seconds_per_step = seconds_per_frame * config.n_frames_per_step
    most = config.max_decoder_steps
    limits = [_first_limit(len(task.symbols), seconds_per_step, most) for task in tasks]
    best: list[Utterance | None] = [None] * len(tasks)
    ranks: list[tuple[bool, Fault] | None] = [None] * len(tasks)
    attempts = [0] * len(tasks)
    pending = list(range(len(tasks)))
    while pending:
        seeds = [attempt_seed(tasks[i].seed, attempts[i]) for i in pending]
        decoded = _decode(tacotron2, [tasks[i].symbols for i in pending], seeds, [limits[i] for i in pending])
        again = []
        for i, (mel, alignment, stopped) in zip(pending, decoded, strict=True):
            reading = judge(alignment, tasks[i].n_sounding, stopped, seconds_per_step)
            if reading.fault >= Fault.UNFINISHED and limits[i] < most:
                limits[i] = most
                again.append(i)
                continue
            attempts[i] += 1
            rank = (not reading.legible, reading.fault)
            if best[i] is None or rank < ranks[i]:
                best[i], ranks[i] = _kept(mel, alignment, stopped, reading, seconds_per_step), rank
            best[i].attempts = attempts[i]
            if attempts[i] < MAX_ATTEMPTS and _may_be_mended(reading, attempts[i]):
                again.append(i)
        pending = again
    return best


def _may_be_mended(reading: Reading, attempts: int) -> bool:
    """Whether another seed may do better: it gives a long text no more steps, and teaches no model to read."""
    if not reading.legible:
        return attempts > 1  # it did read, before
    return reading.fault not in (Fault.NONE, Fault.TOO_LONG)


def _first_limit(n_symbols: int, seconds_per_step: float, most: int) -> int:
    return min(most, ceil((SECONDS_BESIDES + SECONDS_PER_SYMBOL * n_symbols) / seconds_per_step))


def _decode(
    tacotron2: Tacotron2, texts: list[list[int]], seeds: list[int], limits: list[int]
) -> list[tuple[Tensor, np.ndarray, bool]]:
    """(mel [n_mel_channels, frames], alignment [steps, symbols], whether the gate fired) of each."""
    device = tacotron2.embedding.weight.device
    lengths = torch.tensor([len(symbols) for symbols in texts])
    text = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, symbols in zip(text, texts, strict=True):
        row[: len(symbols)] = torch.tensor(symbols)
    with warnings.catch_warnings():
        # It counts items, where a reader of warnings knows sentences.
        warnings.simplefilter("ignore", DecoderStepLimitWarning)
        mels, mel_lengths, alignments = tacotron2.infer(
            text.to(device), lengths.to(device), seed=seeds, max_steps=limits
        )
    results = []
    for i, n_frames in enumerate(mel_lengths.tolist()):
        n_steps = n_frames // tacotron2.config.n_frames_per_step
        alignment = alignments[i, :n_steps, : len(texts[i])].float().cpu().numpy()
        results.append((mels[i, :, :n_frames], alignment, n_steps < limits[i]))
    return results


def _kept(mel: Tensor, alignment: np.ndarray, stopped: bool, reading: Reading, seconds_per_step: float) -> Utterance:
    if reading.end is None:
        return Utterance(mel, alignment, stopped, 0, False, reading.fault)
    loudness = mel.float().mean(dim=0).view(len(alignment), -1).mean(dim=1).cpu().numpy()
    n_steps = cut_behind(reading.end, loudness, seconds_per_step)
    n_frames = n_steps * (mel.shape[1] // len(alignment))
    return Utterance(mel[:, :n_frames], alignment[:n_steps], False, 0, True, reading.fault)
