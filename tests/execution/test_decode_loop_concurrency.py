"""The decode loop's programs at the same time, in processes: equal bits, no races, and an end when a program stops."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.kernels.decode_loop import decoding as decoding_module
from fastglow.kernels.decode_loop.kernels import N_PHASES
from fastglow.kernels.launch import use_config
from tests.kernels.checks import assert_same_bits
from tests.kernels.decode_loop_cases import CASES, Case, begin, new_decoding

from .mutants import Replacement, mutated_kernels, without_barrier
from .processes import Stop, fork_each, one_program_each, run_concurrently, shared_empty, shared_memory
from .programs import run_programs
from .races import Exchange, Launch, Recorder, find_races, find_thread_races

PHASES = int(N_PHASES)
SPREAD = CASES[3]  # several tiles in every phase
ONE_FRAME = replace(SPREAD, max_steps=1, stops="never")
MANY = Case((2, 3, 1) * 6, n_memory=5, n_attention=4, max_steps=2, stops="never")  # two blocks of items


@pytest.fixture(autouse=True)
def _few_polls(monkeypatch):
    """A program polls once per arrival of another; more polls than that mean that it waits in vain."""
    monkeypatch.setattr(decoding_module, "MAX_POLLS", 64)
    monkeypatch.setattr(decoding_module, "FRAMES_PER_GRAPH", 2)
    with backend.use_backend("triton"):
        yield


@pytest.fixture(params=[0, 1])
def prefetch(request):
    """Blocks of weights that a program loads between its arrival at a barrier and the wait."""
    with use_config("decode_loop", {"PREFETCH": request.param, "num_warps": 8}):
        yield request.param


@triton.jit
def count_kernel(p_count, p_found, n):
    for i in range(n):
        tl.store(p_found + tl.program_id(0) * n + i, tl.atomic_add(p_count, 1, sem="relaxed"))


def test_atomic_operations_of_processes():
    n_processes, n = 4, 2000
    count, found = (shared_empty(size, dtype=torch.int32) for size in (1, n_processes * n))
    count.zero_()

    def run(i: int) -> None:
        with run_programs(lambda *_: [(i, 0, 0)]):
            count_kernel[(n_processes,)](count, found, n)

    fork_each(run, n_processes)
    assert count.item() == n_processes * n
    assert found.sort().values.tolist() == list(range(n_processes * n))
    assert (found.view(n_processes, n).diff() > 0).all()


def decode(case: Case, dtype: torch.dtype = torch.float32):
    batch = case.batch(dtype)
    with shared_memory():
        return batch, new_decoding(case, batch)


@pytest.mark.parametrize("case, dtype, programs", [
    (Case(), torch.float32, 2),
    (Case(), torch.float16, 5),  # more programs than tiles in some phases
    (CASES[1], torch.float32, 3),  # an item of length 0
    (SPREAD, torch.float16, 3),
    (Case(), torch.bfloat16, 9),
    (MANY, torch.bfloat16, 3),  # two blocks of items
], ids=str)  # fmt: skip
def test_programs_at_the_same_time(case, dtype, programs, prefetch):
    batch, decoding = decode(case, dtype)
    sizes = *batch.memory.shape[:2], case.early_stopping
    decoding.run_loop(1)
    expected = decoding.result(*sizes)
    begin(decoding, batch)
    decoding.run_steps()
    assert_same_bits(decoding.result(*sizes), expected)
    begin(decoding, batch)
    with run_concurrently(one_program_each, seed=prefetch) as launches:
        decoding.run_loop(programs)
    assert_same_bits(decoding.result(*sizes), expected)
    (loop,) = launches
    assert len(loop.launch.programs) == programs
    assert find_races(loop.launch, loop.names) == []
    assert find_thread_races(loop.launch, loop.names) == []


def arrivals(launch: Launch) -> dict[int, int]:
    """By program."""
    return {
        program[0]: sum(isinstance(event, Exchange) and event.before[0] != event.after[0] for event in events)
        for program, events in launch.programs.items()
    }


STOPS = [
    Stop(1, "start"),
    Stop(0, "arrival", 0),
    Stop(2, "arrival", 8),
    Stop(1, "arrived", 3),
    Stop(0, "store", 4),
    Stop(2, "load", 30, resumes=True),
    Stop(1, "arrival", 7, resumes=True),
]


def arrivals_after(stop: Stop, replacements, tmp_path, monkeypatch) -> dict[int, int]:
    """How often each program arrived at a barrier; one that was killed is left out."""
    if replacements:
        monkeypatch.setattr(
            decoding_module, "decode_loop_kernel", mutated_kernels(tmp_path, *replacements).decode_loop_kernel
        )
    case = Case((5, 3), max_steps=4, stops="never")
    _, decoding = decode(case)
    # What is computed after giving up may be NaN.
    with np.errstate(all="ignore"), run_concurrently(one_program_each, stop=stop) as launches:
        decoding.run_loop(3)
    with pytest.raises(FastglowError, match="did not arrive at a barrier"):
        decoding.result(2, 5, True)
    programs = launches[0].launch.programs
    assert len(programs) == 3 if stop.resumes else set(programs) == {(i, 0, 0) for i in range(3) if i != stop.program}
    return arrivals(launches[0].launch)


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_a_stopped_program_makes_the_others_give_up(stop, tmp_path, monkeypatch):
    counts = arrivals_after(stop, [], tmp_path, monkeypatch)
    resumed = counts.pop(stop.program, None)
    (count,) = set(counts.values())
    assert count % PHASES == 0  # the others end with their frame
    if stop.event.startswith("arriv"):
        assert count == PHASES * (stop.n // PHASES + 1)
    if stop.resumes:
        # Alone it completes the others' frame, and gives up in the next one.
        assert resumed == count + PHASES


def test_going_on_after_giving_up_is_found(tmp_path, monkeypatch):
    """Program 0 writes the list of the next frame itself, and so begins it."""
    ignores_alive = ("n_items * alive > 0", "(n_items > 0) & (t < decoder.sizes.max_steps)", 1)
    assert arrivals_after(Stop(2, "arrival", 1), [ignores_alive], tmp_path, monkeypatch)[0] > PHASES


ITEMS: list[Replacement] = [
    ("p_items = running.items + t % 2 * B", "p_items = running.items", 1),
    ("i_next * frame.B", "0 * frame.B", 1),
]


def every_arrival(arguments: str) -> list[Replacement]:
    """The arrival that also begins the wait, and the one of a program that loads weights in between."""
    add = "tl.atomic_add(p_barrier, 1, "
    return [(f'{add}sem="{sem}")', f"{add}{arguments})", 1) for sem in ("acq_rel", "release")]


FAULTS: dict[str, list[Replacement]] = {
    **{f"no barrier after phase {i}": without_barrier(i) for i in range(PHASES)},
    "arrival relaxed": every_arrival('sem="relaxed"'),
    "arrival acquires only": every_arrival('sem="acquire"'),
    "arrival of the block's scope": every_arrival('sem="acq_rel", scope="cta"'),
    "poll relaxed": [('(p_barrier, 0, sem="acquire")', '(p_barrier, 0, sem="relaxed")', 2)],
    "poll releases only": [('(p_barrier, 0, sem="acquire")', '(p_barrier, 0, sem="release")', 2)],
    "threads not joined before the arrival": [
        ("    tl.debug_barrier()  # every thread's writes", "    #", 1),
        ("    tl.debug_barrier()\n    tl.atomic_add", "    tl.atomic_add", 1),
    ],
    "threads not joined after the wait": [("    tl.debug_barrier()\n    return alive", "    return alive", 2)],
    "one arrival too few": [("    target = 0\n", "    target = -1\n", 1)],
    "reads what its phase writes": [
        (
            "Product(lstm_d.weight_hh, n, lstm_d.h, n, blocks.EVEN_ND)",
            "Product(lstm_d.weight_ih + N, N + D, attention.context, D, blocks.EVEN_D)",
            1,
        )
    ],
}
# A program that does not load weights in between also acquires with its arrival, which may be the last one.
FAULTS_OF_ONE_FORM = {
    "arrival releases only": (0, every_arrival('sem="release"')[:1]),
    "one list of items": (0, ITEMS),  # with several blocks of items, for which no weights are loaded early
}


def races_of_a_copy(replacements: list[Replacement], case: Case, tmp_path, monkeypatch) -> list:
    mutant = mutated_kernels(tmp_path, *replacements)
    monkeypatch.setattr(decoding_module, "decode_loop_kernel", mutant.decode_loop_kernel)
    _, decoding = decode(case)
    # A faulty kernel may compute with NaN.
    with np.errstate(all="ignore"), run_concurrently(one_program_each) as launches:
        decoding.run_loop(3)
    return find_races(launches[0].launch, launches[0].names)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_races(fault, prefetch, tmp_path, monkeypatch):
    assert races_of_a_copy(FAULTS[fault], ONE_FRAME, tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", FAULTS_OF_ONE_FORM)
def test_planted_faults_of_one_form_are_races(fault, tmp_path, monkeypatch):
    n, replacements = FAULTS_OF_ONE_FORM[fault]
    with use_config("decode_loop", {"PREFETCH": n, "num_warps": 8}):
        assert races_of_a_copy(replacements, MANY if replacements is ITEMS else ONE_FRAME, tmp_path, monkeypatch)


@pytest.mark.parametrize("case", [ONE_FRAME, MANY], ids=str)
def test_a_copy_without_a_fault_has_no_races(case, prefetch, tmp_path, monkeypatch):
    assert races_of_a_copy([], case, tmp_path, monkeypatch) == []


def shuffled_share(kernel, grid):
    """Three processes share the programs, in random order."""
    programs = [(i, 0, 0) for i in range(grid[0])]
    random.shuffle(programs)
    return [programs[i::3] for i in range(3)]


@pytest.mark.parametrize("case", [Case(), SPREAD, MANY], ids=str)
def test_launches_of_a_phase(case):
    """`graph` and `steps` launch each phase; no program of a launch reads what another writes."""
    batch, decoding = decode(case)
    sizes = *batch.memory.shape[:2], True
    decoding.run_loop(1)
    expected = decoding.result(*sizes)
    begin(decoding, batch)
    recorder = Recorder()
    with run_programs(lambda _, grid: random.sample([(i, 0, 0) for i in range(grid[0])], grid[0]), recorder):
        decoding.run_steps()
    assert_same_bits(decoding.result(*sizes), expected)
    assert all(find_races(launch) == [] for launch in recorder.launches)


def test_launches_of_a_phase_at_the_same_time():
    batch, decoding = decode(SPREAD)
    sizes = *batch.memory.shape[:2], True
    decoding.run_loop(1)
    expected = decoding.result(*sizes)
    begin(decoding, batch)
    with run_concurrently(shuffled_share) as launches:
        decoding.run_steps()
    assert_same_bits(decoding.result(*sizes), expected)
    assert len(launches) == 2 * PHASES
    assert all(find_races(loop.launch) == [] for loop in launches)


MERGED = """    if tl.program_id(0) < _n_tiles(PHASE, frame.n_items, decoder, blocks):
        _tile(PHASE, tl.program_id(0), frame, decoder, (), blocks)
"""


@pytest.mark.parametrize("phase", range(PHASES - 1))
def test_two_phases_in_one_launch_are_a_race(phase, tmp_path, monkeypatch):
    following = "".join(f"    {line}\n" for line in MERGED.replace("(PHASE,", "(PHASE + 1,").splitlines())
    mutant = mutated_kernels(tmp_path, (MERGED, f"{MERGED}    if PHASE == {phase}:\n{following}", 1))
    monkeypatch.setattr(decoding_module, "decode_phase_kernel", mutant.decode_phase_kernel)
    _, decoding = decode(SPREAD)
    recorder = Recorder()
    with run_programs(lambda _, grid: list(np.ndindex(*grid)), recorder):
        decoding.run_frames(1)
    assert [bool(find_races(launch)) for launch in recorder.launches] == [i == phase for i in range(PHASES)]


def test_one_list_of_items_is_a_race_in_a_launch(tmp_path, monkeypatch):
    mutant = mutated_kernels(tmp_path, *ITEMS)
    monkeypatch.setattr(decoding_module, "decode_phase_kernel", mutant.decode_phase_kernel)
    _, decoding = decode(SPREAD)
    recorder = Recorder()
    with run_programs(lambda _, grid: list(np.ndindex(*grid)), recorder):
        decoding.run_frames(1)
    assert [bool(find_races(launch)) for launch in recorder.launches] == [False] * (PHASES - 1) + [True]
