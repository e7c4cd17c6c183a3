"""The grid barriers of the decode loop in PTX, with planted faults in the source and in the PTX."""

import json
import os
import re
import subprocess
import sys

import pytest

from fastglow.kernels.decode_loop.kernels import HAS_CONDITION, N_PHASES

from .barriers import Barriers, barrier_faults, joins
from .ptx import Program
from .reports import ROOT

PHASES = int(N_PHASES)
N_SMALL = 2  # barriers of the small kernel

pytestmark = pytest.mark.skipif(not HAS_CONDITION, reason="this Triton does not compile the persistent loop")


def arrival(arguments: str):
    add = "tl.atomic_add(p_barrier, 1, "
    return [(f'{add}sem="{sem}")', f"{add}{arguments})", 1) for sem in ("acq_rel", "release")]


def poll(arguments: str):
    add = "tl.atomic_add(p_barrier, 0, "
    return [(f'{add}sem="acquire")', f"{add}{arguments})", 2)]


FAULTS = {
    "none": [],
    "arrival relaxed": arrival('sem="relaxed"'),
    "arrival acquires only": arrival('sem="acquire"'),
    "arrival of the block's scope": arrival('sem="acq_rel", scope="cta"'),
    "poll relaxed": poll('sem="relaxed"'),
    "poll releases only": poll('sem="release"'),
    "poll of the block's scope": poll('sem="acquire", scope="cta"'),
    "threads not joined before the arrival": [
        ("    tl.debug_barrier()  # every thread's writes", "    #", 1),
        ("    tl.debug_barrier()\n    tl.atomic_add", "    tl.atomic_add", 1),
    ],
    "threads not joined after the wait": [("    tl.debug_barrier()\n    return alive", "    return alive", 2)],
}


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTGLOW_BACKEND")}
    command = [sys.executable, "-m", "tests.ahead_of_time.barrier_kernels", "90", json.dumps(FAULTS)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["loop 0", "loop 4"])
def loop(request, ptx) -> str:
    return ptx[request.param]


def test_barriers_of_the_loop(loop):
    assert barrier_faults(loop, PHASES) == []


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_in_the_source(fault, split, ptx):
    assert bool(barrier_faults(ptx[f"{fault} {split}"], N_SMALL)) == (fault != "none")


ARRIVAL = r"atom\.global\.gpu\.(?:acq_rel|release)\.add"
POLL = r"ld\.global\.gpu\.acquire"
JOIN = r"\n\tbar\.sync \t0;"


def changed(ptx: str, i: int, pattern: str, new: str) -> str:
    """Replaces the i-th match."""
    matches = list(re.finditer(pattern, ptx))
    assert len(matches) == PHASES
    return ptx[: matches[i].start()] + matches[i].expand(new) + ptx[matches[i].end() :]


# Text up to the next arrival or poll, without bar.sync.
BETWEEN = r"((?:(?!bar\.sync|atom\.|acquire)[\s\S])*?"
PTX_FAULTS = {
    "no arrival": (rf"@%p\d+ {ARRIVAL}.*", ""),
    "arrival relaxed": (ARRIVAL, "atom.global.gpu.relaxed.add"),
    "arrival of the block's scope": (r"atom\.global\.gpu\.(acq_rel|release)\.add", r"atom.global.cta.\1.add"),
    "no poll": (rf"@%p\d+ {POLL}.*", ""),
    "poll relaxed": (POLL, "ld.global.gpu.relaxed"),
    "poll of the block's scope": (POLL, "ld.global.cta.acquire"),
    "threads not joined before the arrival": (rf"{JOIN}{BETWEEN}{ARRIVAL})", r"\1"),
}


@pytest.mark.parametrize("i", range(PHASES))
@pytest.mark.parametrize("fault", PTX_FAULTS)
def test_planted_faults_in_each_barrier(fault, i, loop):
    assert barrier_faults(changed(loop, i, *PTX_FAULTS[fault]), PHASES)


@pytest.mark.parametrize("i", range(PHASES))
def test_threads_not_joined_after_one_wait(i, loop):
    program = Program(loop)
    barriers = Barriers(program)
    instructions = program.blocks[barriers.end_of(barriers.polls[i])].instructions
    instructions.remove(next(x for x in instructions if joins(x)))
    assert barriers.check(PHASES)


def test_loads_through_the_non_coherent_cache_are_found(loop):
    assert barrier_faults(loop.replace("ld.global.b32", "ld.global.nc.b32", 1), PHASES)
