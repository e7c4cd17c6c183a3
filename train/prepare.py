"""From a folder of recordings to a prepared data set: read, check, resample, trim, cache log-mels."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from fastglow.audio import MelConfig, MelSpectrogram, read_audio
from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.text import text_to_sequence
from fastglow.text.cleaners import DEFAULT_CLEANERS, find_cleaner

from .manifest import Item, PreparedDataset
from .sources import Source, read_sources

TRIM_WINDOW = 512  # samples


@dataclass
class PrepareReport:
    """What `prepare` did: the prepared data set, and every rejected item with its reason."""

    dataset: PreparedDataset
    rejected: list[tuple[str, str]]

    @property
    def hours(self) -> float:
        samples = sum(item.samples for items in self.dataset.items.values() for item in items)
        return samples / self.dataset.audio.sampling_rate / 3600


def split_texts(texts: Iterable[str], n_validation: int) -> set[str]:
    """The held-out texts: the first `n_validation` distinct ones in the order of their hashes.

    A sentence that was recorded several times is held out with all its takes, and which sentences
    are held out does not change when others are added.
    """
    by_hash = sorted(set(texts), key=lambda text: hashlib.sha256(text.lower().encode()).digest())
    return set(by_hash[:n_validation])


def trim_silence(audio: np.ndarray, trim_db: float, keep: int) -> np.ndarray:
    """Cuts both ends where every window is more than `trim_db` below the loudest one, but for `keep` samples."""
    n_windows = len(audio) // TRIM_WINDOW
    if n_windows == 0:
        return audio
    energy = np.square(audio[: n_windows * TRIM_WINDOW].reshape(n_windows, TRIM_WINDOW)).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-trim_db / 10))
    if len(loud) == 0:
        return audio
    return audio[max(0, loud[0] * TRIM_WINDOW - keep) : (loud[-1] + 1) * TRIM_WINDOW + keep]


def prepare(
    dataset: str | os.PathLike,
    out: str | os.PathLike,
    audio: MelConfig | None = None,
    *,
    cleaners: Sequence[str] = DEFAULT_CLEANERS,
    n_validation: int = 100,
    validation: str | os.PathLike | None = None,
    min_seconds: float = 0.3,
    max_seconds: float = 20.0,
    trim_db: float | None = None,
    on_bad: str = "skip",
    workers: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Checks every recording of a data set and caches its samples and log-mel.

    Args:
        dataset: LJ-Speech folder or filelist, see `fastglow.train.sources`.
        out: folder that is filled, see `fastglow.train.manifest`.
        audio: parameters of the log-mel; recordings at other rates are resampled.
        cleaners: text cleaners of the training to come, which takes them from here: a text of which they leave
            nothing is bad.
        n_validation: distinct sentences to hold out with all their takes, at most a tenth of them but for one.
        validation: data set whose items are all held out, instead of `n_validation` sentences of `dataset`.
        min_seconds, max_seconds: shorter and longer clips are bad.
        trim_db: cut silence at both ends down to 50 ms, where it is this far below the loudest part.
        on_bad: 'skip' lists bad items in the report and goes on, 'stop' raises at the first.
        workers: threads; absent: one a core.
        progress: show a progress bar on standard error.

    Raises:
        FastglowError: no data set, an unknown cleaner, an unwritable folder, a bad item with on_bad='stop', or no good
            ones.
    """
    if workers is not None and workers < 1:
        raise FastglowError(f"{workers} workers: use 1 or more")
    if n_validation < 0:
        raise FastglowError(f"{n_validation} sentences to hold out: use 0 or more")
    if trim_db is not None and not trim_db > 0:
        raise FastglowError(f"trim_db {trim_db}: use a level in dB below the loudest part, such as 40")
    if not 0 <= min_seconds <= max_seconds:  # so written, NaN is refused too
        raise FastglowError(f"clips of {min_seconds} to {max_seconds} s: use lengths of which the first is the smaller")
    for name in cleaners:
        find_cleaner(name)  # or else it would be a fault of each item, told once the old data set is gone
    audio = audio or MelConfig()
    sources = read_sources(Path(dataset))
    held_out_ids = set()
    if validation is not None:
        held_out_sources = read_sources(Path(validation))
        held_out_ids = {source.id for source in held_out_sources}
        # A clip that stands in both lists is held out.
        sources = [source for source in sources if source.id not in held_out_ids] + held_out_sources
    result = PreparedDataset(Path(out), audio, {"train": [], "validation": []}, list(cleaners))
    try:
        for kind in ("mels", "audio"):
            (result.folder / kind).mkdir(parents=True, exist_ok=True)
        (result.folder / "dataset.json").unlink(missing_ok=True)
    except OSError as error:
        raise FastglowError(f"cannot write to {out} ({error.strerror}): pass another --out") from error
    mel_spectrogram = MelSpectrogram.from_config(audio)

    def cache(source: Source) -> Item | str:
        try:
            return _cache(source, result, mel_spectrogram, cleaners, min_seconds, max_seconds, trim_db)
        except FastglowError as error:
            return str(error)
        except OSError as error:
            # Not the item's fault: the next one would not fit on the disk either.
            raise FastglowError(f"cannot write to {out}: {error.strerror}") from error

    items, rejected = [], []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        outcomes = tqdm(pool.map(cache, sources), total=len(sources), unit="clip", disable=not progress)
        for source, outcome in zip(sources, outcomes, strict=True):
            if isinstance(outcome, Item):
                items.append(outcome)
            elif on_bad == "stop":
                pool.shutdown(cancel_futures=True)
                raise FastglowError(f"{source.id}: {outcome} (leave --on-bad at skip to go on without it)")
            else:
                rejected.append((source.id, outcome))
    if not items:
        raise FastglowError(f"none of the {len(sources)} items of {dataset} is usable; the first: {rejected[0][1]}")
    if validation is None:
        held_out = _held_out_texts(items, n_validation)
        held_out_ids = {item.id for item in items if item.text in held_out}
    for item in items:
        result.items["validation" if item.id in held_out_ids else "train"].append(item)
    result.write(str(dataset), rejected)
    return PrepareReport(result, rejected)


def _held_out_texts(items: Sequence[Item], n_validation: int) -> set[str]:
    texts = {item.text for item in items}
    return split_texts(texts, min(n_validation, max(1, len(texts) // 10)) if len(texts) > 1 else 0)


def _cache(
    source: Source,
    dataset: PreparedDataset,
    mel_spectrogram: MelSpectrogram,
    cleaners: Sequence[str],
    min_seconds: float,
    max_seconds: float,
    trim_db: float | None,
) -> Item:
    if not text_to_sequence(source.text, cleaners):
        raise FastglowError(f"text {source.text!r} has nothing to speak")
    rate = dataset.audio.sampling_rate
    samples, _ = read_audio(source.path, rate)
    if trim_db is not None:
        samples = trim_silence(samples, trim_db, keep=rate // 20)
    seconds = len(samples) / rate
    if not min_seconds <= seconds <= max_seconds:
        raise FastglowError(f"{source.path} lasts {seconds:.2f} s, allowed are {min_seconds:g} to {max_seconds:g} s")
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    # A constant is silence too: the zero of 8-bit and of some cheap converters' recordings is not quite 0.
    if pcm.min() == pcm.max():
        raise FastglowError(f"{source.path} is silent throughout")
    mel = mel_spectrogram(torch.from_numpy(pcm.astype(np.float32) / 32768.0).unsqueeze(0))[0].numpy()
    for kind, array in (("audio", pcm), ("mels", mel)):
        path = dataset.path(kind, source.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    return Item(source.id, source.text, len(pcm), mel.shape[1])
