"""Makes the shards of a data set, of recordings and of what was made of them before."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm import tqdm

from fastglow.errors import FastglowError

from .clips import ClipMaker, ClipOptions, Made, is_recording
from .publishing import digest_of
from .shard_writer import ShardWriter
from .shards import VERSION, Entry, Head, Placed, Shard, ShardData, shards_in
from .sources import Source

logger = logging.getLogger(__name__)

AHEAD = 4  # clips that wait to be written, for each thread

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def divided(sources: Sequence[Source], n_shards: int) -> list[list[Source]]:
    """The clips of each shard: by a hash of their ids, so that a clip's shard does not depend on the others."""
    parts: list[list[Source]] = [[] for _ in range(n_shards)]
    for source in sources:
        digest = hashlib.sha256(source.id.encode("utf-8", "surrogatepass")).digest()
        parts[int.from_bytes(digest[:8], "little") % n_shards].append(source)
    return parts


class Known(NamedTuple):
    """A clip in a finished shard."""

    data: ShardData
    placed: Placed


class ShardMaker:
    """Makes shards in threads.

    Args:
        folder: of the data set.
        options: of the clips.
        parts: clips of each shard.
        pool: for the clips.
        stops: raise FastglowError at the first clip that cannot be used.
        progress: show a progress bar on standard error.

    Attributes:
        changes: what has changed since a clip was made.
        n_made: clips that were made.
    """

    def __init__(
        self,
        folder: Path,
        options: ClipOptions,
        parts: Sequence[Sequence[Source]],
        pool: ThreadPoolExecutor,
        stops: bool,
        progress: bool,
    ):
        self.folder, self.parts, self.stops, self.progress = folder, parts, stops, progress
        digest = digest_of([VERSION, options.as_dict()])
        self.heads = [
            Head(
                VERSION, number, len(parts), options.audio.n_mel_channels, options.mel_dtype, digest,
                digest_of([[source.id, source.text] for source in part]),
            )
            for number, part in enumerate(parts)
        ]  # fmt: skip
        self.changes: list[tuple[str, str]] = []
        self.n_made = 0
        self._make = ClipMaker(options)
        self._pool = pool
        self._entries: dict[Path, list[Placed]] = {}

    def make(self, number: int) -> Shard:
        """Makes a shard, unless it is there; goes on with what is there of it.

        Raises:
            FastglowError: another process makes it, or a clip cannot be used.
            OSError: as the file system does.
        """
        part, head = self.parts[number], self.heads[number]
        known = self._known(number)
        right = self._right(part, known)
        shards = {known[source.id].data.shard for source in part} if len(right) == len(part) > 0 else set()
        if len(shards) == 1 and (shard := shards.pop()).head == head:
            for entry in (right[source.id].placed.entry for source in part):
                self._check(entry)
            return shard

        def is_right(position: int, entry: Entry) -> bool:
            return position < len(part) and self._fault(part[position], entry) is None and not self._stops_at(entry)

        def produce(source: Source) -> Made:
            if source.id not in right:
                return self._make(source)
            data, placed = right[source.id]
            arrays = data.arrays(placed)
            return Made(placed.entry, arrays["pcm"], arrays["mel"])

        with ShardWriter(self.folder, head, is_right) as writer:
            done = writer.n_clips
            if done:
                logger.info("%s: continuing after %d of %d clips", head.name, done, len(part))
            outcomes = self._in_order(produce, part[done:])
            bar = tqdm(outcomes, desc=head.name, initial=done, total=len(part), unit="clip", disable=not self.progress)
            for made in bar:
                self._check(made.entry)
                writer.add(*made)
                self.n_made += made.entry.id not in right
            return writer.finish()

    def present(self) -> list[Shard]:
        """The finished shards of these clips and options that are in the folder, older ones first."""
        return [shard for shard in self._by_age() if shard.head in self.heads]

    def are_present(self, shards: Sequence[Shard]) -> bool:
        """Whether `present` would still give these."""
        return set(self.present()) == set(shards)

    def finished(self, present: Sequence[Shard], made: dict[int, Shard]) -> dict[int, tuple[Shard, list[Placed]]]:
        """The newest whole shard of each number, with its clips: of those that this process has made, or another."""
        found = dict[int, tuple[Shard, list[Placed]]]()
        for shard in [*present, *made.values()]:
            try:
                found[shard.head.shard] = shard, shard.entries()
            except FileNotFoundError:
                pass  # another process has put a newer one in its place
            except (OSError, ValueError):
                logger.warning("%s is damaged", shard.file("clips"))
        return found

    def _by_age(self) -> list[Shard]:
        found = dict[Shard, int]()
        for shard in shards_in(self.folder):
            with suppress(FileNotFoundError):  # another process has just removed it
                found[shard] = shard.file("clips").stat().st_mtime_ns
        return sorted(found, key=lambda shard: found[shard])

    def _known(self, number: int) -> dict[str, Known]:
        """The clips that were made with the same options, by id."""
        head = self.heads[number]
        shards = [shard for shard in self._by_age() if shard.head.options == head.options]
        same = [shard for shard in shards if (shard.head.shard, shard.head.of) == (number, head.of)]
        found: dict[str, Known] = {}
        for shard in sorted(same or shards, key=lambda shard: shard.head == head):
            if shard.path not in self._entries:
                try:
                    self._entries[shard.path] = shard.entries()
                except (OSError, ValueError):
                    self._entries[shard.path] = []
                    logger.warning("%s is damaged: its clips are made again", shard.file("clips"))
            data = ShardData(shard)
            found |= {placed.entry.id: Known(data, placed) for placed in self._entries[shard.path]}
        if not same:  # the others are in other shards
            ids = {source.id for source in self.parts[number]}
            found = {name: clip for name, clip in found.items() if name in ids}
        return found

    def _right(self, part: Sequence[Source], known: dict[str, Known]) -> dict[str, Known]:
        """Those of the known clips that need not be made again; notes what has changed."""
        if not known:
            return {}

        def fault(source: Source) -> str | None:
            if source.id not in known:
                return "is new"
            data, placed = known[source.id]
            found = self._fault(source, placed.entry)
            return "its samples or log-mel are damaged" if found is None and not data.is_whole(placed) else found

        faults = tqdm(
            self._in_order(fault, part), desc="comparing", total=len(part), unit="clip", disable=not self.progress
        )
        by_id = {source.id: found for source, found in zip(part, faults, strict=True)}
        self.changes += [(name, found) for name, found in by_id.items() if found is not None]
        self.changes += [(name, "is not in the list any more") for name in known if name not in by_id]
        return {name: known[name] for name, found in by_id.items() if found is None}

    def _fault(self, source: Source, entry: Entry) -> str | None:
        """Why an entry is not that of a clip."""
        if entry.id != source.id or entry.text != source.text:
            return "its text has changed"
        return None if is_recording(entry.recording, source.path) else "its recording has changed"

    def _stops_at(self, entry: Entry) -> bool:
        return self.stops and entry.reason is not None

    def _check(self, entry: Entry) -> None:
        if self._stops_at(entry):
            raise FastglowError(f"{entry.id}: {entry.reason} (pass --on-bad skip to continue without it)")

    def _in_order(self, function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """function(argument) of each, in threads, a few ahead: the results may be large."""
        left = iter(arguments)
        ahead = AHEAD * self._pool._max_workers
        waiting: deque[Future[Result]] = deque(self._pool.submit(function, x) for x in islice(left, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(self._pool.submit(function, x) for x in islice(left, 1))
            yield result
