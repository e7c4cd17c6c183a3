"""Finds data races between the programs of a launch, whatever the order in which they ran.

Two accesses race if they touch the same byte, at least one writes, and no chain of atomic operations orders them. Only
`release` and `acquire` order, and only what `tl.debug_barrier` joins to them: an atomic operation belongs to one thread
of a program. Other threads' accesses come before it only if a barrier lies between, and after it only after a barrier.
A processor's stronger memory order hides nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .programs import Grid, Observer, Program


class Segment(NamedTuple):
    """What a program accesses between two of its barriers or atomic operations: [n, 2] byte ranges, ascending."""

    reads: np.ndarray
    writes: np.ndarray


class Exchange(NamedTuple):
    """An atomic addition: values before and after, per address."""

    addresses: np.ndarray
    before: np.ndarray
    after: np.ndarray
    itemsize: int
    sem: str
    scope: str


class Barrier(NamedTuple):
    """A `tl.debug_barrier`."""


Event = Segment | Exchange | Barrier


@dataclass
class Launch:
    kernel: str
    grid: Grid
    programs: dict[Program, list[Event]] = field(default_factory=dict)
    """Each program's events in its order."""


class Recorder(Observer):
    """Keeps what the programs of each launch access."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self._clear()

    def launched(self, kernel: str, grid: Grid) -> None:
        self.launches.append(Launch(kernel, grid))

    def started(self, program: Program) -> None:
        self._events = self.launches[-1].programs.setdefault(program, [])
        self._clear()

    def ended(self, program: Program) -> None:
        self._cut()

    def loaded(self, addresses: np.ndarray, itemsize: int) -> None:
        self._reads.append((addresses.reshape(-1), itemsize))

    def stored(self, addresses: np.ndarray, itemsize: int) -> None:
        self._writes.append((addresses.reshape(-1), itemsize))

    def synchronized(self) -> None:
        self._cut()
        self._events.append(Barrier())

    def exchanged(self, addresses: np.ndarray, itemsize: int, sem: str) -> None:
        self._cut()
        self._exchange = addresses.reshape(-1).astype(np.int64), itemsize, sem

    def returned(self, op: str, before: np.ndarray, operands: np.ndarray, scope: str) -> None:
        assert op == "add", f"an atomic {op}: the order of additions alone is known from their results"
        addresses, itemsize, sem = self._exchange
        before, operands = before.reshape(-1).copy(), operands.reshape(-1)
        self._events.append(Exchange(addresses, before, before + operands, itemsize, sem, scope))

    def _cut(self) -> None:
        if self._reads or self._writes:
            self._events.append(Segment(byte_ranges(self._reads), byte_ranges(self._writes)))
        self._clear()

    def _clear(self) -> None:
        self._reads: list[tuple[np.ndarray, int]] = []
        self._writes: list[tuple[np.ndarray, int]] = []


def byte_ranges(accesses: Iterable[tuple[np.ndarray, int]]) -> np.ndarray:
    """The bytes of all elements of (addresses, itemsize) as disjoint ascending ranges, [n, 2]."""
    pairs = [(unique, unique + size) for a, size in accesses for unique in (np.unique(a.astype(np.int64)),)]
    if not any(len(starts) for starts, _ in pairs):
        return np.empty((0, 2), np.int64)
    starts, ends = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    is_first = np.append(True, starts[1:] > ends[:-1])
    return np.stack((starts[is_first], ends[np.append(is_first[1:], True)]), axis=1)


class Race(NamedTuple):
    """Two accesses that nothing orders."""

    kernel: str
    first: Program
    second: Program
    kinds: str  # as "write and read", in the order of the programs
    address: int
    where: str  # the tensor and the byte's offset in it


def find_races(launch: Launch, names: Mapping[str, tuple[int, int]] | None = None) -> list[Race]:
    """The races of a launch, one per pair of programs, kinds of access and tensor.

    Args:
        launch: all its programs ran to their end.
        names: tensors' byte ranges, for the messages.
    """
    flat = _Flat(launch)
    found: dict[tuple, Race] = {}
    for i, j, kinds, address in flat.conflicts():
        if not (flat.precedes(i, j) or flat.precedes(j, i)):
            (first, one), (second, other) = sorted(((flat.program[i], kinds[0]), (flat.program[j], kinds[1])))
            name, offset = _locate(address, names or {})
            race = Race(launch.kernel, first, second, f"{one} and {other}", address, f"{name} + {offset}")
            found.setdefault((*race[:4], name), race)
    return list(found.values())


def find_thread_races(launch: Launch, names: Mapping[str, tuple[int, int]] | None = None) -> list[Race]:
    """Bytes that one program both reads and writes between two barriers, where two threads may do so in any order."""
    return [
        Race(
            launch.kernel, program, program, "read and write", address, "{} + {}".format(*_locate(address, names or {}))
        )
        for program, events in launch.programs.items()
        for event in events
        if isinstance(event, Segment)
        for address in _overlaps(event.reads, event.writes)[:1]
    ]


def _locate(address: int, names: Mapping[str, tuple[int, int]]) -> tuple[str, int]:
    return next(
        ((name, address - start) for name, (start, end) in names.items() if start <= address < end), ("?", address)
    )


def _overlaps(a: np.ndarray, b: np.ndarray) -> list[int]:
    """First common byte of each range of b with a."""
    if not len(a):
        return []
    i = np.searchsorted(a[:, 1], b[:, 0], side="right")
    near = a[np.minimum(i, len(a) - 1)]
    hit = (i < len(a)) & (near[:, 0] < b[:, 1])
    return np.maximum(near[hit, 0], b[hit, 0]).tolist()


_KINDS = ("read", "write", "atomic")


class _Flat:
    """A launch's segments and atomic operations, numbered; a node's clock tells which nodes come before it."""

    def __init__(self, launch: Launch) -> None:
        self._programs = list(launch.programs)
        self.program: list[Program] = []  # per node
        self._position: list[int] = []  # within its program
        self._ranges: list[tuple[np.ndarray, int, int]] = []  # ranges, node, kind
        self._nodes: list[list[int]] = []  # by program and position; -1 for a barrier
        for program, events in launch.programs.items():
            self._nodes.append([self._add(program, i, event) for i, event in enumerate(events)])
        self._clock: dict[int, np.ndarray] = {}
        self._set_clocks(list(launch.programs.values()))
        self._index = {program: p for p, program in enumerate(self._programs)}

    def _add(self, program: Program, position: int, event: Event) -> int:
        if isinstance(event, Barrier):
            return -1
        node = len(self.program)
        self.program.append(program)
        self._position.append(position)
        if isinstance(event, Segment):
            self._ranges += [(event.reads, node, 0), (event.writes, node, 1)]
        else:
            # Atomic operations of another scope are ordinary accesses to the other programs.
            kind = 1 if event.scope == "cta" else 2
            self._ranges.append((byte_ranges([(event.addresses, event.itemsize)]), node, kind))
        return node

    def precedes(self, i: int, j: int) -> bool:
        return self._clock[j][self._index[self.program[i]]] >= self._position[i]

    def _set_clocks(self, programs: Sequence[list[Event]]) -> None:
        """Clocks: per program, the position of its last event that comes before."""
        n = len(programs)
        clock = [np.full(n, -1) for _ in range(n)]  # of every thread of a program
        published = [np.full(n, -1) for _ in range(n)]  # the clock at the last barrier
        acquired = [np.full(n, -1) for _ in range(n)]  # known to one thread until the next barrier
        messages: dict[int, np.ndarray] = defaultdict(lambda: np.full(n, -1))
        for p, i in _order(programs):
            event = programs[p][i]
            if isinstance(event, Barrier):
                np.maximum(clock[p], acquired[p], out=clock[p])
                clock[p][p] = i
                published[p] = clock[p].copy()
                continue
            now = clock[p].copy()
            now[p] = i
            self._clock[self._nodes[p][i]] = now
            if isinstance(event, Exchange) and event.scope != "cta":
                for address in event.addresses.tolist():
                    # An addition continues the release sequences of the additions before it.
                    if event.sem in ("acquire", "acq_rel"):
                        np.maximum(acquired[p], messages[address], out=acquired[p])
                    if event.sem in ("release", "acq_rel"):
                        own = np.maximum(published[p], acquired[p])
                        messages[address] = np.maximum(messages[address], own)

    def conflicts(self) -> Iterable[tuple[int, int, tuple[str, str], int]]:
        """(node, node, kinds, address) for pairs of nodes of different programs with a common byte that one writes."""
        counts = [len(ranges) for ranges, _, _ in self._ranges]
        if not sum(counts):
            return []
        ranges = np.concatenate([ranges for ranges, _, _ in self._ranges])
        node = np.repeat([node for _, node, _ in self._ranges], counts)
        kind = np.repeat([kind for _, _, kind in self._ranges], counts)
        written = kind > 0
        # Cells: between two neighbouring ends of written ranges. A writer fills each of its cells.
        edges = np.unique(ranges[written])
        if not len(edges):
            return []
        cell, source = _cells(edges, ranges)
        order = np.argsort(cell, kind="stable")
        cell, source = cell[order], source[order]
        writes = written[source]
        w_cell, w_source = cell[writes], source[writes]
        low, high = np.searchsorted(cell, w_cell, "left"), np.searchsorted(cell, w_cell, "right")
        first = np.repeat(w_source, high - low)
        at = np.repeat(w_cell, high - low)
        second = source[_spans(low, high)]
        index = np.array([self._programs.index(program) for program in self.program])
        keep = index[node[first]] != index[node[second]]
        keep &= (kind[first] != 2) | (kind[second] != 2)
        first, second, at = first[keep], second[keep], at[keep]
        keys = np.stack((node[first], node[second], kind[first], kind[second]), axis=1)
        keys, where = np.unique(keys, axis=0, return_index=True)
        addresses = np.maximum(np.maximum(ranges[first, 0], ranges[second, 0]), edges[at])[where]
        return [
            (i, j, (_KINDS[a], _KINDS[b]), address)
            for (i, j, a, b), address in zip(keys.tolist(), addresses.tolist(), strict=True)
        ]


def _cells(edges: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cell, range) for each cell that a range overlaps."""
    low = np.maximum(np.searchsorted(edges, ranges[:, 0], "right") - 1, 0)
    high = np.minimum(np.searchsorted(edges, ranges[:, 1], "left"), len(edges) - 1)
    high = np.maximum(high, low)
    return _spans(low, high), np.repeat(np.arange(len(ranges)), high - low)


def _spans(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """low[0], ..., high[0] - 1, low[1], ..., high[1] - 1, ..."""
    counts = high - low
    return np.arange(counts.sum()) + np.repeat(low - np.append(0, counts.cumsum()[:-1]), counts)


def _order(programs: Sequence[list[Event]]) -> Iterable[tuple[int, int]]:
    """(program, position) of all events, in an order in which each atomic addition finds the value that it found.

    Counters only grow, so that the values tell this order; additions of 0 come before the change to the next value.
    """
    values: dict[int, int] = {}
    for events in programs:
        for event in events:
            if isinstance(event, Exchange):
                assert (event.after >= event.before).all(), "the order is known of counters that grow"
                for address, before in zip(event.addresses.tolist(), event.before.tolist(), strict=True):
                    values[address] = min(before, values.get(address, before))
    at = [0] * len(programs)

    def finds(event: Exchange) -> bool:
        return all(values[a] == b for a, b in zip(event.addresses.tolist(), event.before.tolist(), strict=True))

    def changes(event: Exchange) -> bool:
        return bool((event.after != event.before).any())

    while any(i < len(events) for i, events in zip(at, programs, strict=True)):
        before = list(at)
        for p, events in enumerate(programs):
            while at[p] < len(events):
                event = events[at[p]]
                if isinstance(event, Exchange) and (changes(event) or not finds(event)):
                    break
                yield p, at[p]
                at[p] += 1
        if before != at:
            continue  # every addition of 0 comes first
        ready = [p for p, events in enumerate(programs) if at[p] < len(events) and finds(events[at[p]])]
        touched = [address for p in ready for address in programs[p][at[p]].addresses.tolist()]
        assert ready and len(set(touched)) == len(touched), "these additions were not atomic"
        p = ready[0]
        event = programs[p][at[p]]
        values.update(zip(event.addresses.tolist(), event.after.tolist(), strict=True))
        yield p, at[p]
        at[p] += 1
