"""A folder of recordings to a prepared data set: read, check, resample, trim, cache log-mels."""

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
from .sources import Source, read_exclusions, read_sources

TRIM_WINDOW = 512  # samples


@dataclass
class PrepareReport:
    """The prepared data set, and every rejected item with its reason."""

    dataset: PreparedDataset
    rejected: list[tuple[str, str]]

    @property
    def hours(self) -> float:
        samples = sum(item.samples for items in self.dataset.items.values() for item in items)
        return samples / self.dataset.audio.sampling_rate / 3600


def split_texts(texts: Iterable[str], n_validation: int) -> set[str]:
    """The held-out texts: the first `n_validation` distinct ones in the order of their hashes.

    All takes of a sentence are held out together, and the choice is stable when sentences are added.
    """
    by_hash = sorted(set(texts), key=lambda text: hashlib.sha256(text.lower().encode()).digest())
    return set(by_hash[:n_validation])


def trim_silence(audio: np.ndarray, trim_db: float, keep: int) -> np.ndarray:
    """Cuts both ends where every window is more than `trim_db` below the loudest one, except `keep` samples."""
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
    exclude: str | os.PathLike | None = None,
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
        out: folder to fill, see `fastglow.train.manifest`.
        audio: parameters of the log-mel; recordings at other rates are resampled.
        cleaners: text cleaners for training, which takes them from here; a text of which they leave nothing is
            rejected.
        n_validation: distinct sentences to hold out with all their takes: at most a tenth of them, at least one.
        validation: data set whose items are all held out, instead of `n_validation` sentences of `dataset`.
        exclude: file of clips to leave out, see `sources.read_exclusions`; the report lists them. The others stay in
            the split that they have without it.
        min_seconds, max_seconds: shorter and longer clips are rejected.
        trim_db: cut both ends, down to 50 ms, where they are this far below the loudest part.
        on_bad: 'skip' lists rejected items in the report and continues, 'stop' raises at the first.
        workers: threads; default: one per core.
        progress: show a progress bar on standard error.

    Raises:
        FastglowError: no data set, an unknown cleaner, a clip to exclude that there is not, an unwritable folder, a
            rejected item with on_bad='stop', or no usable items.
    """
    if workers is not None and workers < 1:
        raise FastglowError(f"workers={workers} must be at least 1")
    if n_validation < 0:
        raise FastglowError(f"n_validation={n_validation} must not be negative")
    if trim_db is not None and not trim_db > 0:
        raise FastglowError(f"trim_db={trim_db} must be positive: dB below the loudest part, such as 40")
    if not 0 <= min_seconds <= max_seconds:  # NaN fails too
        raise FastglowError(f"min_seconds={min_seconds} must not be negative or greater than max_seconds={max_seconds}")
    for name in cleaners:
        find_cleaner(name)  # raises before the old data set is deleted
    audio = audio or MelConfig()
    sources = read_sources(Path(dataset))
    held_out_ids = set()
    if validation is not None:
        held_out_sources = read_sources(Path(validation))
        held_out_ids = {source.id for source in held_out_sources}
        # A clip in both lists is held out.
        sources = [source for source in sources if source.id not in held_out_ids] + held_out_sources
    excluded = {} if exclude is None else read_exclusions(Path(exclude), sources)
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
            # Not the item's fault: the next one could not be written either.
            raise FastglowError(f"cannot write to {out}: {error.strerror}") from error

    items: list[Item] = []
    rejected = list(excluded.items())
    excluded_texts = {source.text for source in sources if source.id in excluded}
    sources = [source for source in sources if source.id not in excluded]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        outcomes = tqdm(pool.map(cache, sources), total=len(sources), unit="clip", disable=not progress)
        for source, outcome in zip(sources, outcomes, strict=True):
            if isinstance(outcome, Item):
                items.append(outcome)
            elif on_bad == "stop":
                pool.shutdown(cancel_futures=True)
                raise FastglowError(f"{source.id}: {outcome} (pass --on-bad skip to continue without it)")
            else:
                rejected.append((source.id, outcome))
    if not items:
        n = len(sources) + len(excluded)
        raise FastglowError(f"none of the {n} items of {dataset} is usable; the first: {rejected[0][1]}")
    if validation is None:
        held_out = _held_out_texts({item.text for item in items} | excluded_texts, n_validation)
        held_out_ids = {item.id for item in items if item.text in held_out}
    for item in items:
        result.items["validation" if item.id in held_out_ids else "train"].append(item)
    result.write(str(dataset), rejected)
    return PrepareReport(result, rejected)


def _held_out_texts(texts: set[str], n_validation: int) -> set[str]:
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
        raise FastglowError(f"{source.path} lasts {seconds:.2f} s, must be {min_seconds:g} to {max_seconds:g} s")
    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    # A constant is silence too: 8-bit files and cheap converters have an offset.
    if pcm.min() == pcm.max():
        raise FastglowError(f"{source.path} is silent throughout")
    mel = mel_spectrogram(torch.from_numpy(pcm.astype(np.float32) / 32768.0).unsqueeze(0))[0].numpy()
    for kind, array in (("audio", pcm), ("mels", mel)):
        path = dataset.path(kind, source.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    return Item(source.id, source.text, len(pcm), mel.shape[1])
