"""Faults detected in attention paths drawn by hand."""

import numpy as np
import pytest

from fastglow.engine.reading import Fault, judge, steps_to_keep

STEP = 0.035  # seconds


def alignment(path, n_symbols, height=0.8):
    """[steps, n_symbols]: `height` on the path, the remainder spread evenly."""
    weights = np.full((len(path), n_symbols), (1 - height) / max(n_symbols - 1, 1), np.float32)
    weights[np.arange(len(path)), path] = height
    return weights


def steady(n_symbols, each=2, at_end=5):
    """A correct reading: every symbol in turn, then more steps on the last."""
    return [i for i in range(n_symbols) for _ in range(each)] + [n_symbols - 1] * (at_end - each)


def verdict(path, n_symbols, stopped=True, n_marks=1, step=STEP, **how):
    return judge(alignment(path, n_symbols, **how), n_symbols - n_marks, stopped, step)


@pytest.mark.parametrize("n_symbols", [2, 3, 6, 40, 190])
@pytest.mark.parametrize("each", [1, 2, 7])
def test_a_correct_reading(n_symbols, each):
    reading = verdict(steady(n_symbols, each), n_symbols)
    assert reading.fault is Fault.NONE
    assert reading.end is None
    assert reading.legible


def test_correct_readings_with_irregularities():
    path = steady(60)
    glance = [*path]
    glance[50:52] = [3, 3]
    hurried = [p for i, p in enumerate(path) if not 40 <= i < 52]  # six symbols are skipped
    back = [*path[:60], *range(path[60] - 5, path[60]), *path[60:]]
    short = path[:-12]  # ends before the last symbols
    for quirk in (glance, hurried, back, short):
        assert verdict(quirk, 60).fault is Fault.NONE
    # Final marks that attention never reaches, or visits one by one.
    assert verdict(steady(10), 14, n_marks=4).fault is Fault.NONE
    assert verdict(steady(14), 14, n_marks=4).fault is Fault.NONE


@pytest.mark.parametrize("n_symbols", [2, 5, 18, 120])
@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("step", [0.0116, 0.035, 0.06])
def test_running_on(n_symbols, stopped, step):
    """The attention stays at the end: the gate never fires, or much too late."""
    path = steady(n_symbols, at_end=round(1.5 / step))
    reading = verdict(path, n_symbols, stopped, step=step)
    assert reading.fault is Fault.RUNS_ON
    assert reading.end == pytest.approx(2 * (n_symbols - 1), abs=0.05 / step + 1)
    assert verdict(steady(n_symbols, at_end=round(0.7 / step)), n_symbols, step=step).fault is Fault.NONE


def test_running_on_while_the_attention_wanders():
    path = steady(30)
    wandering = [*path, *np.random.default_rng(1).integers(0, 30, 100)]
    reading = verdict(wandering, 30, stopped=False)
    assert reading.fault is Fault.RUNS_ON
    assert 57 <= reading.end <= 60


@pytest.mark.parametrize(("n_symbols", "stopped"), [(12, False), (30, True), (90, False)])
def test_running_on_with_attention_that_blurs_after_the_end(n_symbols, stopped):
    right = alignment(steady(n_symbols), n_symbols)
    babble = alignment(np.random.default_rng(1).integers(0, n_symbols, 400), n_symbols, height=0.2)
    reading = judge(np.concatenate((right, babble)), n_symbols - 1, stopped, STEP)
    assert reading.fault is Fault.RUNS_ON
    assert reading.end == pytest.approx(2 * (n_symbols - 1), abs=3)


def test_running_on_on_the_last_sound():
    """The attention never reaches the final mark."""
    path = steady(7, at_end=60)
    reading = verdict(path, 8, stopped=False)
    assert reading.fault is Fault.RUNS_ON
    assert reading.end == pytest.approx(12, abs=1)


def test_an_early_glance_at_the_end_is_not_the_end():
    """The correct reading that follows must not be cut."""
    for n_symbols in (6, 40):
        path = [0, 0, *[n_symbols - 1] * 6, *steady(n_symbols, each=5)]
        assert verdict(path, n_symbols).end is None
        reading = verdict([*path, *[n_symbols - 1] * 50], n_symbols)
        assert reading.end == pytest.approx(8 + 5 * (n_symbols - 1), abs=2)
        assert reading.fault is not Fault.NONE


@pytest.mark.parametrize("at", [12, 40, 70])
def test_repeating(at):
    path = steady(50)
    looped = [*path[:at], *path[max(0, at - 24) : at], *path[at:]] if at > 12 else [*path[:40], *path[:at], *path[40:]]
    reading = verdict(looped, 50)
    assert reading.fault is Fault.REPEATS


@pytest.mark.parametrize("at", [0, 10, 60])
def test_skipping(at):
    path = steady(60)
    assert verdict([*path[:at], *path[at + 30 :]], 60).fault is Fault.SKIPS


@pytest.mark.parametrize("n_symbols", [5, 20, 150])
def test_breaking_off(n_symbols):
    assert verdict(steady(n_symbols)[: n_symbols // 2], n_symbols).fault is Fault.BREAKS_OFF
    assert judge(np.zeros((0, n_symbols), np.float32), n_symbols - 1, True, STEP).fault is Fault.BREAKS_OFF


def test_too_few_steps_for_a_steady_reading():
    short = verdict(steady(100)[:150], 100, stopped=False)
    assert (short.fault, short.end, short.unread) == (Fault.TOO_LONG, None, 24)


@pytest.mark.parametrize(("stopped", "fault"), [(False, Fault.UNFINISHED), (True, Fault.BREAKS_OFF)])
@pytest.mark.parametrize("step", [0.0116, 0.035])
@pytest.mark.parametrize("n_symbols", [21, 100])
def test_an_utterance_that_never_reaches_its_end_ends_with_its_last_progress(stopped, fault, step, n_symbols):
    """It stands still, loops over many symbols or over few, or wanders, with or without a stop in the end."""
    path, last = steady(n_symbols)[:30], 14
    n_more = round(3 / step)
    wandering = np.random.default_rng(3).integers(0, last - 3, n_more)
    for rest in ([last] * n_more, path * 20, path[-8:] * 60, [0] * n_more, wandering):
        reading = verdict([*path, *rest], n_symbols, stopped, step=step)
        assert reading.fault is fault
        # What attention touches for up to 0.1 s before it goes back is an excursion.
        assert 28 - round(0.1 / step) <= reading.end <= 28 + round(0.1 / step)
        assert 0 <= reading.unread - (n_symbols - 2 - last) <= 0.05 / step
    assert verdict(path[:1] * n_more, n_symbols, stopped, step=step).end == 0


@pytest.mark.parametrize("at", [0, 1, 30, 59])
@pytest.mark.parametrize("step", [0.0116, 0.035])
def test_stalling(at, step):
    """Attention stands still or goes back and forth over a few symbols, then goes on."""
    path = steady(61, at_end=2)
    for rocking in ([at], [at, max(0, at - 4)]):

        def stalled(seconds, rocking=rocking):
            rest = [p for p in rocking for _ in range(5)] * 1000
            return [*path[: 2 * at], *rest[: round(seconds / step)], *path[2 * at + 2 :]]

        assert verdict(stalled(1.0), 61, step=step).fault is Fault.NONE
        reading = verdict(stalled(1.4), 61, step=step)
        assert (reading.fault, reading.end) == (Fault.STALLS, None)
    looped = [*stalled(1.4), *path[:60], *path[60:]]
    assert verdict(looped, 61, step=step).fault is not Fault.STALLS


def test_the_better_of_two_readings():
    """What reads the whole text comes before what ends in mid-text, and that had best read far."""
    path = steady(60)
    whole = [
        verdict(path, 60),
        verdict([*path, *[59] * 50], 60),
        verdict([*path[:60], *[29] * 40, *path[60:]], 60),
        verdict([*path[:60], *path[20:]], 60),
        verdict([*path[:30], *path[70:]], 60),
    ]
    assert [reading.fault for reading in whole] == [0, 1, 2, 3, 4]
    partial = [verdict(path[:100], 60), verdict([*path[:80], *[39] * 90], 60, False), verdict(path[:60], 60)]
    assert [reading.fault for reading in partial] == [Fault.BREAKS_OFF, Fault.UNFINISHED, Fault.BREAKS_OFF]
    ranks = [reading.rank for reading in (*whole, *partial, verdict(path, 60, height=0.3))]
    assert ranks == sorted(set(ranks))


def test_names_of_faults():
    assert Fault.NONE.label is None
    assert [fault.label for fault in (Fault.RUNS_ON, Fault.STALLS)] == ["runs_on", "stalls"]


@pytest.mark.parametrize("n_symbols", [10, 100])
def test_faults_of_illegible_attention_are_not_judged(n_symbols):
    path = np.random.default_rng(1).integers(0, n_symbols, 200)
    for stopped, fault in ((True, Fault.NONE), (False, Fault.UNFINISHED)):
        reading = verdict(path, n_symbols, stopped, height=0.3)
        assert (reading.fault, reading.end, reading.legible) == (fault, None, False)


@pytest.mark.parametrize(("step", "quietest"), [(0.0116, 25), (0.035, 14), (0.05, 13)])
def test_the_cut_is_at_the_quietest_step_soon_after_the_end(step, quietest):
    loudness = np.random.default_rng(2).normal(0, 1, 200)
    loudness[5] = loudness[100] = -20  # before the end, and much later
    loudness[quietest] = -10
    assert steps_to_keep(10, loudness, step) == quietest
    flat = steps_to_keep(10, np.zeros(200), step)
    assert 0.05 <= (flat - 10) * step <= 0.35


def test_long_steps_are_cut_too():
    assert 4 <= steps_to_keep(3, np.zeros(5), 0.5) <= 5
    assert steps_to_keep(3, np.zeros(4), 0.5) == 4
