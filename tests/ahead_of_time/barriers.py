"""The grid barriers of a kernel's PTX: what must stand on every path around an arrival and a wait."""

import re
from collections.abc import Callable

from .ptx import Instruction, Program

Place = tuple[int, int]
"""Block and instruction."""


def _is_strong(x: Instruction) -> bool:
    """An atomic, or a load with an order of its own."""
    return x.is_global and re.match(r"(?:atom|red)\.|ld\..*(?:acquire|relaxed|volatile)", x.opcode) is not None


def joins(x: Instruction) -> bool:
    """Waits for all threads of the block."""
    return not x.predicate and x.opcode == "bar.sync" and x.operands.strip() == "0"


def _has(x: Instruction, *orders: str) -> bool:
    """One of the orders, for the whole GPU."""
    words = x.opcode.split(".")
    return any(order in words for order in orders) and ("gpu" in words or "sys" in words)


class Barriers:
    """Arrivals, polls and waits of a kernel. A wait is a loop of one block around a poll."""

    def __init__(self, program: Program) -> None:
        self.blocks = program.blocks
        self.program = program
        self.found: list[str] = []
        places = [
            (i, j) for i, block in enumerate(self.blocks) for j, x in enumerate(block.instructions) if _is_strong(x)
        ]
        self.polls = [place for place in places if self._is_in_a_wait(place)]
        self.arrivals = [place for place in places if place not in self.polls]
        self.written = {
            pointer for x in program.instructions() if x.is_global and x.opcode.startswith("st.")
            for pointer in program.base_pointers(x)
        }  # fmt: skip

    def at(self, place: Place) -> Instruction:
        return self.blocks[place[0]].instructions[place[1]]

    def _is_in_a_wait(self, place: Place) -> bool:
        """In a loop of one block."""
        return place[0] in self.blocks[place[0]].successors

    def _walk(self, start: Place, visit: Callable[[Place], bool], forward: bool = True) -> None:
        """Visits instructions on all paths from a place, which it leaves out; a path ends where `visit` is true."""
        seen: set[int] = set()
        block, first = start
        left = [(block, first + 1 if forward else first - 1)]
        while left:
            block, j = left.pop()
            n = len(self.blocks[block].instructions)
            steps = range(j, n) if forward else range(j, -1, -1)
            if any(visit((block, i)) for i in steps):
                continue
            for other in self.blocks[block].successors if forward else self.blocks[block].predecessors:
                if other not in seen:
                    seen.add(other)
                    left.append((other, 0 if forward else len(self.blocks[other].instructions) - 1))

    def _until_joined(self, start: Place, what: str, forward: bool) -> None:
        """No access to global memory on any path before the threads are joined."""

        def visit(place: Place) -> bool:
            x = self.at(place)
            if x.is_global:
                self.found.append(f"{what}: {x} is not separated by bar.sync")
                return True
            return joins(x)

        self._walk(start, visit, forward)

    def check(self, n_barriers: int) -> list[str]:
        for x in self.program.instructions():
            if x.is_global and re.search(r"\.nc\b", x.opcode):
                self.found.append(f"{x} may read an old value")
        if not len(self.arrivals) == len(self.polls) == n_barriers:
            self.found.append(f"{len(self.arrivals)} arrivals and {len(self.polls)} polls, must be {n_barriers}")
        addresses = {self.at(place).address.strip() for place in self.arrivals + self.polls}
        counters = {frozenset(self.program.base_pointers(self.at(place))) for place in self.arrivals + self.polls}
        if len(counters) != 1 or frozenset() in counters:
            self.found.append(f"different counters: {addresses}")
        for place in self.polls:
            if not _has(self.at(place), "acquire", "acq_rel"):
                self.found.append(f"poll: {self.at(place)} does not acquire")
        waits = [self._check_arrival(place) for place in self.arrivals]
        if sorted(waits) != sorted(self.polls):
            self.found.append("an arrival has no wait of its own")
        return self.found

    def _check_arrival(self, arrival: Place) -> Place:
        """Returns its poll."""
        x = self.at(arrival)
        self._until_joined(arrival, "before the arrival", forward=False)
        # What it returns can end the wait, which is then an acquire.
        (result, *_), _ = x.registers if x.opcode.startswith("atom.") else ([""], [])
        used = any(result in y.registers[1] for y in self.program.instructions())
        if not _has(x, "acq_rel", *([] if used else ["release"])):
            self.found.append(f"arrival: {x} has too weak an order or scope")
        polls: list[Place] = []
        ends = {(end, self._first_join(end)) for end in map(self.end_of, self.polls)}

        def visit(place: Place) -> bool:
            y = self.at(place)
            if place in self.polls:
                polls.append(place)
                return True
            written = not y.opcode.startswith("ld.") and not y.opcode.startswith("cp.async")
            if y.is_global and (written or self._may_be_written(y)):
                self.found.append(f"between arrival and wait: {y}")
                return True
            # The loop's guard leads there when polling is not needed or in vain.
            return place in ends

        self._walk(arrival, visit)
        if len(set(polls)) != 1:
            self.found.append(f"{len(set(polls))} waits follow {x}")
            return arrival
        (wait,) = set(polls)
        self._until_joined((self.end_of(wait), -1), "after the wait", forward=True)
        return wait

    def _may_be_written(self, load: Instruction) -> bool:
        pointers = self.program.base_pointers(load)
        return not pointers or bool(pointers & self.written)

    def end_of(self, poll: Place) -> int:
        """The block that follows a wait's loop, past blocks that neither join threads nor access memory."""
        (end,) = set(self.blocks[poll[0]].successors) - {poll[0]}
        while len(self.blocks[end].successors) == 1 and not any(
            joins(x) or x.is_global for x in self.blocks[end].instructions
        ):
            (end,) = self.blocks[end].successors
        return end

    def _first_join(self, block: int) -> int:
        """-1 if there is none."""
        return next((j for j, x in enumerate(self.blocks[block].instructions) if joins(x)), -1)


def barrier_faults(ptx: str, n_barriers: int) -> list[str]:
    """What is wrong with a kernel that must have `n_barriers` grid barriers. Sound if empty:

    - Before an arrival, on every path, bar.sync follows the last access to global memory.
    - The arrival and the poll order memory for the whole GPU: acq_rel, or release if nothing reads what the arrival
      returns; acquire.
    - Between an arrival and its wait there are only loads, of buffers that the kernel does not write.
    - After a wait, on every path, bar.sync comes before the next access to global memory.
    - No load goes through the non-coherent cache.
    """
    return Barriers(Program(ptx)).check(n_barriers)
