"""A folder of recordings to a prepared data set."""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fastglow.audio import MelConfig
from fastglow.errors import FastglowError
from fastglow.text.cleaners import DEFAULT_CLEANERS, find_cleaner

from .clips import ClipOptions
from .index import SPLITS
from .making import ShardMaker, divided
from .manifest import DESCRIPTION, PreparedDataset, read_description
from .publishing import About, publish
from .shards import MEL_DTYPES, SHARD_CLIPS, Placed
from .sharing import remove_others
from .sources import read_exclusions, read_sources

logger = logging.getLogger(__name__)

MAX_SHARDS = 256  # two mapped files each, and a process may often have 1024 open


@dataclass
class PrepareReport:
    """What `prepare` did.

    Attributes:
        dataset: the prepared data set; None while shards of other processes are missing.
        rejected: every clip that is left out, with its reason; of this process's shards if others are missing.
        changes: clips that an earlier call had made of another recording or text, that are new, or that are gone, with
            what has changed. Empty if the folder was empty.
        made: clips that were made now, without those that were copied.
        missing: numbers of the shards that are missing.
        shards: their number.
    """

    dataset: PreparedDataset | None
    rejected: list[tuple[str, str]]
    changes: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0
    missing: list[int] = field(default_factory=list)
    shards: int = 1

    @property
    def hours(self) -> float:
        """Of the data set."""
        if self.dataset is None:
            return 0.0
        return self.dataset.n_samples / self.dataset.audio.sampling_rate / 3600


def split_texts(texts: Iterable[str], n_validation: int) -> set[str]:
    """The held-out texts: the first `n_validation` distinct ones in the order of their hashes.

    All takes of a sentence are held out together, and the choice is stable when sentences are added.
    """
    by_hash = sorted(set(texts), key=lambda text: hashlib.sha256(text.lower().encode()).digest())
    return set(by_hash[:n_validation])


@dataclass(frozen=True)
class Storage:
    """How a data set is stored.

    Attributes:
        mel_dtype: "float32", or "float16" for half the bytes and a relative error of at most 2^-11.
        shards: into how many the clips are divided, by a hash of their ids; default: as the folder is, or one for each
            SHARD_CLIPS.
        only: numbers of the shards to make, from 0; default: all.
    """

    mel_dtype: str = "float32"
    shards: int | None = None
    only: Sequence[int] = ()


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
    storage: Storage | None = None,
    on_bad: str = "skip",
    workers: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Checks every recording of a data set and stores its samples and log-mel.

    A call that was interrupted at any moment is continued by the same call, with the same result. In a folder that is
    complete, it compares recordings, texts and checksums, and makes again what has changed or is damaged.
    The old data set stays in use until the new one is complete; processes that read it may go on.

    Several processes, also on several machines, may fill one folder at once, each with other shards as `only` and
    otherwise the same arguments. The last one makes them a data set.

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
        storage: dtype of the mels, and shards; default: `Storage()`.
        on_bad: 'skip' lists rejected items in the report and continues, 'stop' raises at the first.
        workers: threads; default: one per core.
        progress: show a progress bar on standard error.

    Raises:
        FastglowError: no data set, an unknown cleaner, a clip to exclude that there is not, an unwritable folder, a
            rejected item with on_bad='stop', a shard that another process makes, or no usable items.
    """
    if workers is not None and workers < 1:
        raise FastglowError(f"workers={workers} must be at least 1")
    if n_validation < 0:
        raise FastglowError(f"n_validation={n_validation} must not be negative")
    if trim_db is not None and not trim_db > 0:
        raise FastglowError(f"trim_db={trim_db} must be positive: dB below the loudest part, such as 40")
    if not 0 <= min_seconds <= max_seconds:  # NaN fails too
        raise FastglowError(f"min_seconds={min_seconds} must not be negative or greater than max_seconds={max_seconds}")
    storage = storage or Storage()
    mel_dtype, only = storage.mel_dtype, storage.only
    if mel_dtype not in MEL_DTYPES:
        raise FastglowError(f"mel_dtype={mel_dtype} must be one of {', '.join(MEL_DTYPES)}")
    for name in cleaners:
        find_cleaner(name)  # raises before anything is changed
    options = ClipOptions(audio or MelConfig(), mel_dtype, cleaners, min_seconds, max_seconds, trim_db)
    sources = read_sources(Path(dataset))
    held_out_ids = set()
    if validation is not None:
        held_out_sources = read_sources(Path(validation))
        held_out_ids = {source.id for source in held_out_sources}
        # A clip in both lists is held out.
        sources = [source for source in sources if source.id not in held_out_ids] + held_out_sources
    excluded = {} if exclude is None else read_exclusions(Path(exclude), sources)
    folder = Path(out)
    before = read_description(folder)
    included = [source for source in sources if source.id not in excluded]
    n_shards = _number_of_shards(storage.shards, before, len(included))
    chosen = sorted(set(only)) if only else range(n_shards)
    for number in chosen:
        if not 0 <= number < n_shards:
            raise FastglowError(f"shard={number} must be from 0 to {n_shards - 1}: pass --shards, how many there are")
    if before is None and (folder / DESCRIPTION).exists():
        logger.info("%s is damaged or of another version: all clips are made again", folder / DESCRIPTION)
    elif before is not None and (others := _other_options(before, options)):
        logger.info("%s was prepared with %s: all clips are made again", folder, others)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            maker = ShardMaker(folder, options, divided(included, n_shards), pool, on_bad == "stop", progress)
            try:
                made = {number: maker.make(number) for number in chosen}
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        order = {source.id: position for position, source in enumerate(included)}
        while True:
            present = maker.present()
            finished = maker.finished(present, made)
            clips = [(number, clip) for number, (_, clips) in finished.items() for clip in clips]
            clips.sort(key=lambda clip: order[clip[1].entry.id])
            rejected = list(excluded.items())
            rejected += [(clip.entry.id, clip.entry.reason) for _, clip in clips if clip.entry.reason is not None]
            missing = [number for number in range(n_shards) if number not in finished]
            report = PrepareReport(None, rejected, maker.changes, maker.n_made, missing, n_shards)
            if missing:
                return report
            usable = [(number, clip) for number, clip in clips if clip.entry.reason is None]
            if not usable:
                reason = f"none of the {len(sources)} items of {dataset} is usable; the first: {rejected[0][1]}"
                raise FastglowError(reason)
            if validation is None:
                excluded_texts = {source.text for source in sources if source.id in excluded}
                held_out = _held_out_texts({clip.entry.text for _, clip in usable} | excluded_texts, n_validation)
                held_out_ids = {clip.entry.id for _, clip in usable if clip.entry.text in held_out}
            splits: dict[str, list[tuple[int, Placed]]] = {split: [] for split in SPLITS}
            for number, clip in usable:
                splits["validation" if clip.entry.id in held_out_ids else "train"].append((number, clip))
            about = About(str(dataset), options.audio, mel_dtype, cleaners, options.as_dict(), rejected)
            is_current = partial(maker.are_present, present)
            try:
                names = publish(folder, [finished[number][0] for number in range(n_shards)], splits, about)
            except FileNotFoundError:
                if is_current():
                    raise
                continue  # another process has just put a newer shard in the place of one of these
            if remove_others(folder, names, is_current):
                break
    except OSError as error:
        # Not the item's fault: the next one could not be written either.
        raise _cannot_write(out, error) from error
    report.dataset = PreparedDataset.open(folder)
    return report


def _cannot_write(out: str | os.PathLike, error: OSError) -> FastglowError:
    return FastglowError(
        f"cannot write to {out} ({error.strerror}): mend that and run the same command to continue, or pass another "
        "--out"
    )


def _held_out_texts(texts: set[str], n_validation: int) -> set[str]:
    return split_texts(texts, min(n_validation, max(1, len(texts) // 10)) if len(texts) > 1 else 0)


def _number_of_shards(asked: int | None, before: dict[str, Any] | None, n_clips: int) -> int:
    if asked is None and before is not None:
        asked = len(before["shards"])
    if asked is None:
        asked = min(MAX_SHARDS, max(1, -(-n_clips // SHARD_CLIPS)))
    if not 1 <= asked <= MAX_SHARDS:
        raise FastglowError(f"shards={asked} must be from 1 to {MAX_SHARDS}")
    return asked


def _other_options(before: dict[str, Any], options: ClipOptions) -> str:
    """The options of the data set that is there and are not these."""
    found = before["options"]
    return ", ".join(
        f"{name}={found.get(name)}" for name, value in options.as_dict().items() if found.get(name) != value
    )
