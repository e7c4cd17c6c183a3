"""What a stream may speak of an utterance before it has ended: never more than is kept in the end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.engine.reading import Fault, Watch, judge, steps_to_keep

from .test_reading import STEP, alignment, steady

N = 40  # symbols, of which the last is a mark
positions = st.integers(0, N - 1)


@st.composite
def paths(draw):
    """Pieces of readings, stalls, loops, random walks and babble, joined by leaps or not at all."""
    path = [0]
    for _ in range(draw(st.integers(1, 6))):
        here = path[-1] if draw(st.booleans()) else draw(positions)
        n = draw(st.integers(1, 50))
        kind = draw(st.sampled_from(["read", "read on", "stall", "loop", "walk", "babble"]))
        random = np.random.default_rng(draw(st.integers(0, 2**16)))
        if kind == "read":
            piece = here + np.arange(n) // draw(st.integers(1, 4))
        elif kind == "read on":
            piece = np.repeat(np.arange(here, N), 2)
        elif kind == "stall":
            piece = np.full(2 * n, here)
        elif kind == "loop":
            piece = here + np.arange(2 * n) // 2 % draw(st.integers(1, 15))
        elif kind == "walk":
            piece = here + random.integers(-2, 4, n).cumsum()
        else:
            piece = random.integers(0, N, n)
        path += piece.clip(0, N - 1).tolist()
    return path


def watched(weights, n_sounding, step, sizes):
    """(steps pushed, steps that can be spoken, fault) after each push; the sizes of the pushes repeat."""
    watch, pushed, seen = Watch(n_sounding, step), 0, []
    while pushed < len(weights):
        for size in sizes:
            safe = watch.push(weights[pushed : pushed + size])
            pushed = min(pushed + size, len(weights))
            seen.append((pushed, safe, watch.fault))
    return seen


@settings(max_examples=200)
@given(
    paths(),
    st.sampled_from([1, 2, N - 1, N - 3, N]),
    st.booleans(),
    st.sampled_from([0.0116, 0.0232, STEP, 0.3]),
    st.lists(st.integers(0, 25), min_size=1, max_size=5).filter(any),
    st.integers(0, 2**16),
)
def test_what_is_spoken_is_kept_and_what_is_blamed_is_faulty(path, n_sounding, stopped, step, sizes, seed):
    weights = alignment(path, N)
    reading = judge(weights, n_sounding, stopped, step)
    loudness = np.random.default_rng(seed).normal(size=len(path))
    kept = len(path) if reading.end is None else steps_to_keep(reading.end, loudness, step)
    before = 0
    for pushed, safe, fault in watched(weights, n_sounding, step, sizes):
        assert before <= safe <= min(pushed, kept)
        assert reading.fault is not Fault.NONE or fault is Fault.NONE
        before = safe


@settings(max_examples=30)
@given(paths(), st.lists(st.integers(1, 25), min_size=1, max_size=5))
def test_the_sizes_of_the_pieces_do_not_matter(path, sizes):
    weights = alignment(path, N)
    alone = {pushed: rest for pushed, *rest in watched(weights, N - 1, STEP, [1])}
    for pushed, *rest in watched(weights, N - 1, STEP, sizes):
        assert alone[pushed] == rest


@pytest.mark.parametrize("each", [1, 3, 9])
@pytest.mark.parametrize("n_symbols", [2, 9, 150])
def test_a_correct_reading_is_hardly_held_back(n_symbols, each):
    """By the look-ahead of the median or the duration of a symbol, once half a second is known."""
    path = steady(n_symbols, each, at_end=max(each, 4))
    for pushed, safe, fault in watched(alignment(path, n_symbols), n_symbols - 1, STEP, [1]):
        assert safe == 0 if pushed < round(0.5 / STEP) else pushed - safe <= max(3, each)
        assert fault is Fault.NONE


def test_a_stall_is_held_back_until_it_is_over():
    path = [*steady(40)[:40], *[19] * 60, *steady(40)[40:]]
    seen = {pushed: rest for pushed, *rest in watched(alignment(path, 40), 39, STEP, [1])}
    assert [seen[n] for n in (60, 70)] == [[41, Fault.NONE]] * 2  # symbol 19 is reached on step 38
    assert [seen[n] for n in (80, 100)] == [[41, Fault.STALLS]] * 2
    assert seen[115] == [41, Fault.STALLS]  # it may have crept on
    assert seen[125][0] >= 120


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ([*steady(40), *[39] * 60], Fault.RUNS_ON),
        ([*steady(40)[:60], *steady(40)[20:]], Fault.REPEATS),
        ([*steady(40)[:20], *steady(40)[50:]], Fault.SKIPS),
        ([*steady(40)[:20], *[9] * 60], Fault.STALLS),
    ],
)
def test_a_fault_is_known_before_the_end(path, fault):
    found = [(pushed, blamed) for pushed, _, blamed in watched(alignment(path, 40), 39, STEP, [5]) if blamed]
    assert {blamed for _, blamed in found} == {fault}
    assert found[0][0] < len(path)


def test_what_is_held_back_after_the_end_of_the_text():
    path = [*steady(40), *np.random.default_rng(1).integers(0, 40, 100)]
    seen = watched(alignment(path, 40), 39, STEP, [3])
    assert seen[-1][1] == 78 + 3  # the last symbol is reached on step 78; the cut is at least 0.1 s later


def test_illegible_attention_is_never_held_back():
    path = np.random.default_rng(1).integers(0, 40, 200)
    seen = watched(alignment(path, 40, height=0.3), 39, STEP, [1])
    assert all(pushed == safe and not fault for pushed, safe, fault in seen if pushed >= 14)  # 0.5 s


def test_attention_that_becomes_legible_late_holds_back_from_then_on():
    blurred = alignment(steady(40)[:40], 40, height=0.3)
    clear = alignment([*steady(40)[40:60], *[29] * 100], 40, height=0.9)
    seen = watched(np.concatenate((blurred, clear)), 39, STEP, [1])
    spoken = [safe for _, safe, _ in seen]
    assert spoken[39] == 40
    assert spoken == sorted(spoken)
    assert spoken[-1] < 65
    assert seen[-1][2] is Fault.STALLS
