"""Further attempts at utterances that go wrong, with a model whose utterances are scripted."""

import numpy as np
import pytest
import torch

from fastglow.engine.acoustic import Acoustic
from fastglow.engine.attempts import MAX_ATTEMPTS, Attempts, Task
from fastglow.engine.reading import Fault
from fastglow.engine.seeds import attempt_seed, sentence_seed

from .scripted import ScriptedTacotron2, mel_of, reading

FRAME = 256 / 22050  # seconds


def task(n_symbols, seed=7):
    return Task([1 + n_symbols] * n_symbols, n_symbols - 1, seed)


def by_attempt(*paths, seed=7):
    """A script with one path per attempt, which the seed identifies; the last path serves all further attempts."""
    order = [attempt_seed(seed, attempt) for attempt in range(MAX_ATTEMPTS)]
    return lambda symbols, own: paths[min(order.index(own), len(paths) - 1)]


def utterances_of(model, *tasks):
    acoustic = Acoustic(model, FRAME)
    attempts = [acoustic.attempts(one) for one in tasks]
    acoustic.complete(attempts)
    return [one.best() for one in attempts]


ENDLESS = [*reading(12), None]
LATE = reading(12, at_end=60)
LOOPED = [*reading(40)[:70], *reading(40)[20:]]
SKIPPED = [*reading(40)[:10], *reading(40)[50:]]
BROKEN_OFF = reading(40)[:30]


@pytest.mark.parametrize("n_symbols", [1, 2, 30, 150])
def test_a_correct_utterance_is_used_unchanged(n_symbols):
    path = reading(n_symbols)
    model = ScriptedTacotron2(lambda symbols, seed: path)
    (utterance,) = utterances_of(model, Task([5] * n_symbols, max(1, n_symbols - 1), 7))
    assert [seeds for seeds, _ in model.calls] == [[7]]
    assert (utterance.stopped, utterance.attempts, utterance.cut) == (True, 1, False)
    assert utterance.fault is Fault.NONE
    assert torch.equal(utterance.mel, mel_of(7, 3 * len(path)))
    assert utterance.alignment.argmax(1).tolist() == path


@pytest.mark.parametrize("wrong", [ENDLESS, LATE])
@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_another_seed_corrects_it(wrong, attempt):
    model = ScriptedTacotron2(by_attempt(*[wrong] * attempt, reading(12)))
    (utterance,) = utterances_of(model, task(12))
    assert (utterance.stopped, utterance.attempts, utterance.cut) == (True, attempt + 1, False)
    assert torch.equal(utterance.mel, mel_of(attempt_seed(7, attempt), 3 * len(reading(12))))


@pytest.mark.parametrize(
    "wrong, fault", [(LOOPED, Fault.REPEATS), (SKIPPED, Fault.SKIPS), (BROKEN_OFF, Fault.BREAKS_OFF)]
)
def test_another_seed_corrects_other_faults(wrong, fault):
    model = ScriptedTacotron2(by_attempt(wrong, wrong, reading(40)))
    (utterance,) = utterances_of(model, task(40))
    assert (utterance.stopped, utterance.attempts, utterance.fault) == (True, 3, Fault.NONE)
    assert [reading.fault for reading in utterance.readings] == [fault, fault, Fault.NONE]


@pytest.mark.parametrize("wrong", [ENDLESS, LATE])
@pytest.mark.parametrize("r", [1, 2, 3])
def test_an_utterance_that_always_runs_on_is_cut_after_its_end(wrong, r):
    model = ScriptedTacotron2(by_attempt([p for p in wrong for _ in range(3 // r)]), r, max_decoder_steps=1200 // r)
    (utterance,) = utterances_of(model, task(12))
    assert (utterance.stopped, utterance.attempts, utterance.cut) == (False, MAX_ATTEMPTS, True)
    assert utterance.fault is Fault.RUNS_ON
    steps = len(utterance.alignment)
    assert utterance.mel.shape == (80, steps * r)
    assert torch.equal(utterance.mel, mel_of(7, steps * r))  # the first attempt: no other was better
    reached = 22 * (3 // r)
    assert 0.05 < (steps - reached) * r * FRAME < 0.4


def test_the_least_wrong_attempt_is_used():
    paths = [BROKEN_OFF, SKIPPED, [*reading(40), None], LOOPED]
    for order in ([0, 1, 2, 3], [2, 3, 1, 0], [3, 1, 0, 2]):
        model = ScriptedTacotron2(by_attempt(*[paths[i] for i in order]))
        (utterance,) = utterances_of(model, task(40))
        assert (utterance.fault, utterance.cut, utterance.attempts) == (Fault.RUNS_ON, True, MAX_ATTEMPTS)
        attempt = order.index(2)
        assert torch.equal(utterance.mel, mel_of(attempt_seed(7, attempt), utterance.mel.shape[1]))
    model = ScriptedTacotron2(by_attempt(BROKEN_OFF, SKIPPED, BROKEN_OFF, SKIPPED))
    (utterance,) = utterances_of(model, task(40))
    assert (utterance.fault, utterance.cut, utterance.stopped) == (Fault.SKIPS, False, True)
    assert utterance.alignment.argmax(1).tolist() == SKIPPED


@pytest.mark.parametrize("endless", [[*reading(40)[:30], None], reading(40)[:30] * 20, [*reading(40)[:30], *[2] * 400]])
def test_an_utterance_that_never_reaches_its_end_is_cut_after_its_last_progress(endless):
    model = ScriptedTacotron2(by_attempt(endless))
    (utterance,) = utterances_of(model, task(40))
    assert (utterance.fault, utterance.attempts) == (Fault.UNFINISHED, MAX_ATTEMPTS)
    assert (utterance.stopped, utterance.cut) == (False, True)
    assert 28 < len(utterance.alignment) < 28 + 0.4 / (3 * FRAME)
    assert torch.equal(utterance.mel, mel_of(7, 3 * len(utterance.alignment)))


def test_an_attempt_that_reads_all_is_preferred_to_one_that_is_cut_in_mid_text():
    stuck, further = [*reading(40)[:30], None], [*reading(40)[:50], None]
    stalled = [*reading(40)[:30], *[14] * 50, *reading(40)[30:]]
    for others in ([stuck, stuck, stalled, further], [LOOPED, stuck, stalled, LOOPED], [further, stalled]):
        (utterance,) = utterances_of(ScriptedTacotron2(by_attempt(*others)), task(40))
        assert (utterance.fault, utterance.cut) == (Fault.STALLS, False)
        assert utterance.alignment.argmax(1).tolist() == stalled
    (utterance,) = utterances_of(ScriptedTacotron2(by_attempt(BROKEN_OFF, stuck, further)), task(40))
    assert (utterance.fault, utterance.cut) == (Fault.UNFINISHED, True)
    assert torch.equal(utterance.mel, mel_of(attempt_seed(7, 2), utterance.mel.shape[1]))


def test_speech_after_a_long_stall_is_not_kept():
    stalled = [*reading(40)[:30], *[14] * 100, *reading(40)[30:]]
    (utterance,) = utterances_of(ScriptedTacotron2(by_attempt(stalled)), task(40))
    assert (utterance.fault, utterance.cut) == (Fault.BREAKS_OFF, True)
    assert 28 < len(utterance.alignment) < 42


@pytest.mark.parametrize("right", range(1, MAX_ATTEMPTS + 1))
def test_a_postponed_attempt_is_decoded_if_no_other_is_right(right):
    """A stream sees the fault while it decodes; the result is that of decoding it to its end."""
    paths = [[*reading(40), None], LOOPED, LOOPED, LOOPED][:right] + [reading(40)]
    script = by_attempt(*paths[:MAX_ATTEMPTS])
    (whole,) = utterances_of(ScriptedTacotron2(script), task(40))
    model = ScriptedTacotron2(script)
    attempts = Attempts(task(40), 3 * FRAME, 400)
    assert (attempts.seed, attempts.done) == (7, False)
    attempts.postpone(Fault.RUNS_ON)
    Acoustic(model, FRAME).complete([attempts])
    utterance = attempts.best()
    order = [*range(1, right + 1)] if right < MAX_ATTEMPTS else [1, 2, 3, 0]
    assert [seed for seeds, _ in model.calls for seed in seeds] == [attempt_seed(7, i) for i in order]
    assert torch.equal(utterance.mel, whole.mel)
    assert [reading.fault for reading in utterance.readings] == [reading.fault for reading in whole.readings]
    assert (utterance.fault, utterance.cut, utterance.attempts) == (whole.fault, whole.cut, whole.attempts)


def test_attempts_are_recorded_one_by_one():
    """As a stream does, which decodes the first itself; a low limit is raised with the same seed."""
    model = ScriptedTacotron2(by_attempt([i for i in range(5) for _ in range(30)] + [5] * 8))
    (whole,) = utterances_of(model, task(6))
    attempts, calls = Attempts(task(6), 3 * FRAME, 400), []
    while not attempts.done:
        calls.append(([attempts.seed], [attempts.limit]))
        attempts.record(*Acoustic(model, FRAME).decode([attempts.task.symbols], [attempts.seed], [attempts.limit]))
    assert calls == model.calls[:2] == model.calls[2:]
    assert [seeds for seeds, _ in calls] == [[7], [7]]
    assert torch.equal(attempts.best().mel, whole.mel)


@pytest.mark.parametrize("each", [10, 20, 30])
def test_a_slow_reader_is_never_cut(each):
    """Up to 1 s per symbol, far more than the first limit allows."""
    path = [i for i in range(5) for _ in range(each)] + [5] * 8
    model = ScriptedTacotron2(lambda symbols, seed: path)
    (utterance,) = utterances_of(model, task(6))
    assert (utterance.stopped, utterance.attempts, utterance.cut) == (True, 1, False)
    assert torch.equal(utterance.mel, mel_of(7, 3 * len(path)))


def test_the_first_limit_grows_with_the_text_up_to_the_models_limit():
    model = ScriptedTacotron2(lambda symbols, seed: reading(len(symbols)))
    for n_symbols in (1, 10, 40, 180):
        utterances_of(model, task(n_symbols) if n_symbols > 1 else Task([5], 1, 7))
    (limits,) = zip(*[limits for _, limits in model.calls], strict=True)
    seconds = [limit * 3 * FRAME for limit in limits]
    assert limits[-1] == 400
    assert list(limits) == sorted(limits)
    assert all(got >= 3 + 0.25 * n for got, n in zip(seconds, (1, 10, 40), strict=False))
    assert seconds[0] < 4


@pytest.mark.parametrize("stopped", [False, True])
def test_a_model_that_cannot_read_has_one_attempt(stopped):
    """Its first result is used."""
    model = ScriptedTacotron2(lambda symbols, seed: [-1] * 50 + ([] if stopped else [None]))
    (utterance,) = utterances_of(model, task(20))
    assert (utterance.attempts, utterance.cut, utterance.stopped) == (1, False, stopped)
    assert torch.equal(utterance.mel, mel_of(7, 3 * (50 if stopped else 400)))
    assert {seed for seeds, _ in model.calls for seed in seeds} == {7}


def test_an_attempt_with_illegible_attention_is_the_worst():
    lost = [*reading(40)[:20], *[-1] * 60]
    for order in ([ENDLESS, lost], [ENDLESS, lost, ENDLESS, lost]):
        (utterance,) = utterances_of(ScriptedTacotron2(by_attempt(*order)), task(12))
        assert (utterance.fault, utterance.attempts) == (Fault.RUNS_ON, MAX_ATTEMPTS)
        assert torch.equal(utterance.mel, mel_of(7, utterance.mel.shape[1]))
    (utterance,) = utterances_of(ScriptedTacotron2(by_attempt(SKIPPED, lost, reading(40))), task(40))
    assert (utterance.fault, utterance.attempts) == (Fault.NONE, 3)


def test_a_text_too_long_for_the_step_limit_is_not_retried():
    model = ScriptedTacotron2(lambda symbols, seed: reading(len(symbols)), max_decoder_steps=60)
    (utterance,) = utterances_of(model, task(50))
    assert (utterance.fault, utterance.attempts, utterance.cut) == (Fault.TOO_LONG, 1, False)
    assert not utterance.stopped
    assert len(utterance.alignment) == 60


def test_an_empty_utterance_is_retried():
    model = ScriptedTacotron2(by_attempt([], reading(5)))
    (utterance,) = utterances_of(model, task(5))
    assert (utterance.attempts, len(utterance.alignment)) == (2, len(reading(5)))
    (utterance,) = utterances_of(ScriptedTacotron2(lambda symbols, seed: []), task(5))
    assert (utterance.attempts, utterance.mel.shape, utterance.cut) == (MAX_ATTEMPTS, (80, 0), False)


def test_batched_as_alone():
    """Retries are batched too, each with its own seeds."""

    def script(symbols, seed):
        n = len(symbols)
        luck = seed * 2654435761 % 2**32 / 2**32
        if luck < 0.4:
            return [*reading(n), None]
        return reading(n) if luck < 0.7 else reading(n, at_end=45)

    tasks = [task(n, seed) for n, seed in ((5, 1), (30, 2), (12, 3), (5, 4), (50, 5), (8, 6), (9, 12))]
    together = utterances_of(ScriptedTacotron2(script), *tasks)
    assert len({utterance.attempts for utterance in together}) > 2
    for order in (list(range(7)), list(range(7))[::-1]):
        for start in (0, 3):
            members = order[start : start + 3]
            for i, one in zip(
                members, utterances_of(ScriptedTacotron2(script), *[tasks[i] for i in members]), strict=True
            ):
                assert (one.attempts, one.cut, one.stopped) == (
                    together[i].attempts,
                    together[i].cut,
                    together[i].stopped,
                )
                assert torch.equal(one.mel, together[i].mel)
                assert np.array_equal(one.alignment, together[i].alignment)


def test_attempts_have_distinct_seeds():
    sentences = [sentence_seed(seed, index) for seed in (0, 1, -1, 2**63 - 1) for index in range(50)]
    seeds = {attempt_seed(seed, attempt) for seed in sentences for attempt in range(MAX_ATTEMPTS)}
    assert len(seeds) == len(sentences) * MAX_ATTEMPTS
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert attempt_seed(-5, 0) == -5
