"""The plan of the runs and their statistics, on a planted clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastglow import FastglowError
from fastglow.benchmark.measuring import MOST_REPEATS, SEEDS_TRIED, Outcome, Passage
from fastglow.benchmark.report import as_object, spread

from .conftest import Planted

RATE = 1000


def spread_of(values):
    low, middle, high = np.percentile(values, (25, 50, 75))
    return pytest.approx({"median": middle, "lower_quartile": low, "upper_quartile": high})


def seconds_of(found, name):
    return [run.seconds for run in found.runs[name]]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_the_spread_is_numpys(values):
    assert spread(values) == spread_of(values)


def test_medians_and_paired_ratios(planted):
    """Durations that drift: the ratio of each round is known, that of the medians is another."""
    ours = [9.0, 1.0, 2.0, 4.0, 16.0, 3.0, 7.0]
    factors = [9.0, 3.0, 2.0, 5.0, 4.0, 2.5, 6.0]
    table = {"ours": ours, "plain": [a * b for a, b in zip(ours, factors, strict=True)]}
    out = Outcome(samples=3000, mel_frames=30, acoustic_seconds=0.6, vocoder_seconds=1.5, sentences=1, attempts=1)
    # The first implementation has made one more call, the first.
    case = planted.case("latency", 16, lambda name, i: table[name][(i - (name == "ours")) % 7], lambda seed: out)
    results = planted.run([case], 160)
    (found,) = results.measured
    n = found.n_rounds
    assert 3 <= n < 7
    assert seconds_of(found, "ours") == pytest.approx(ours[1 : n + 1])
    (entry,) = as_object(results, RATE, {})["measurements"]
    metrics = entry["metrics"]
    assert metrics["seconds"]["ours"] == spread_of(ours[1 : n + 1])
    assert metrics["seconds"]["plain"] == spread_of(table["plain"][1 : n + 1])
    assert metrics["seconds"]["times_better_than_plain"] == spread_of(factors[1 : n + 1])
    assert metrics["times_real_time"]["ours"] == spread_of([3.0 / x for x in ours[1 : n + 1]])
    assert metrics["times_real_time"]["times_better_than_plain"] == spread_of(factors[1 : n + 1])
    assert metrics["acoustic_seconds_per_frame"]["ours"]["median"] == pytest.approx(0.02)
    assert metrics["vocoder_seconds_per_audio_second"]["plain"]["median"] == pytest.approx(0.5)
    assert [run["seconds"] for run in entry["runs"]["plain"]] == pytest.approx(table["plain"][1 : n + 1])


def test_throughput_is_compared_by_samples(planted):
    def outcome(seed):
        return Outcome(900 if planted.active == "ours" else 600, sentences=3, attempts=3)

    case = planted.case("throughput", 128, lambda name, i: 0.5, outcome, n_texts=3)
    (entry,) = as_object(planted.run([case], 20), RATE, {})["measurements"]
    assert entry["batch_size"] == 3 and entry["characters"] == 128
    rates = entry["metrics"]["samples_per_second"]
    assert rates["ours"]["median"] == pytest.approx(1800)
    assert rates["plain"]["median"] == pytest.approx(1200)
    assert rates["times_better_than_plain"]["median"] == pytest.approx(1.5)


def test_implementations_take_turns_after_a_warm_up(planted):
    cases = [planted.case("latency", n, lambda name, i: 1.0) for n in (16, 32)]
    results = planted.run(cases, 1000)
    assert [name for _, name, _ in planted.log] == ["ours", *["ours", "plain"] * (len(planted.log) // 2)]
    assert results.implementations == ["ours", "plain"]
    for case, found in zip(cases, results.measured, strict=True):
        assert found.n_rounds == MOST_REPEATS
        calls = [title for title, name, _ in planted.log if title == case.title and name == "plain"]
        assert len(calls) == 1 + MOST_REPEATS
    rounds = [title for title, name, _ in planted.log if name == "plain"][2:]
    assert rounds == [case.title for case in cases] * MOST_REPEATS


def test_what_surrounds_a_call_is_not_timed(planted):
    passage = Passage(("x" * 16,))
    cases = [planted.case(measure, 16, lambda name, i: 0.25, passage=passage) for measure in ("latency", "first_sound")]
    latency, first_sound = planted.run(cases, 1000).measured
    for found in (latency, first_sound):
        assert seconds_of(found, "plain") == pytest.approx([0.25] * found.n_rounds)
        assert found.warm["ours"].peak_bytes == 7
    assert planted.events.count("begin") == planted.events.count("call")
    assert "begin,call,close,begin" in ",".join(planted.events)


def test_without_code_of_its_own_there_is_no_comparison(planted):
    asked = []

    def ran_reference():
        asked.append(list(planted.log))
        return True

    case = planted.case("latency", 16, lambda name, i: 1.0)
    results = planted.run([case], 50, ran_reference=ran_reference)
    assert asked == [[(case.title, "ours", 1)]]
    assert results.implementations == ["ours"] and {name for _, name, _ in planted.log} == {"ours"}
    (entry,) = as_object(results, RATE, {})["measurements"]
    assert set(entry["metrics"]["seconds"]) == {"ours"}


@given(
    budget=st.floats(1, 200),
    per_character=st.floats(1e-4, 0.5),
    sizes=st.lists(st.integers(8, 600), min_size=1, max_size=5, unique=True),
    factor=st.floats(1, 30),
)
def test_the_budget_is_kept(budget, per_character, sizes, factor):
    """The time of a call is proportional to its text: nothing is misjudged."""
    planted = Planted()

    def duration(n):
        return lambda name, i: n * per_character * (factor if name == "plain" else 1)

    cases = [planted.case("latency", n, duration(n)) for n in sorted(sizes)]
    results = planted.run(cases, budget)
    round_of = {case.title: case.passage.characters * per_character * (1 + factor) for case in cases}
    shortest = cases[0].title
    between = 0.001 * len(planted.log)
    # The shortest text gets its warm-up and one round, whatever they take.
    assert results.seconds - results.first_call_seconds - between <= max(budget, 2 * round_of[shortest]) * 1.000001
    titles = [found.case.title for found in results.measured] + [case.title for case, _ in results.left_out]
    assert sorted(titles) == sorted(round_of)
    assert results.measured[0].case.title == shortest
    assert all(found.n_rounds >= 1 for found in results.measured)
    for found in results.measured:  # nothing more would have fitted
        fits = round_of[found.case.title] <= budget - (results.seconds - results.first_call_seconds)
        assert found.n_rounds == MOST_REPEATS or not fits


def test_each_call_gets_three_rounds_before_any_gets_more(planted):
    cases = [planted.case("latency", n, lambda name, i, n=n: n / 10) for n in (10, 20, 100)]
    # Rounds of both take 2, 4 and 20 s. Warm-up and three rounds of all: 104 s.
    results = planted.run(cases, 105)
    assert [found.n_rounds for found in results.measured] == [3, 3, 3] and not results.left_out


def test_the_slowest_gets_fewer_rounds_or_is_left_out(planted):
    cases = [planted.case("latency", n, lambda name, i, n=n: n / 10) for n in (10, 20, 100)]
    results = planted.run(cases, 85)
    assert [found.n_rounds for found in results.measured[:2]] >= [3, 3]
    assert results.measured[2].n_rounds == 2
    other = Planted()
    cases = [other.case("latency", n, lambda name, i, n=n: n / 10) for n in (10, 20, 100)]
    results = other.run(cases, 50)
    assert [case.title for case, _ in results.left_out] == [cases[2].title]
    assert "about 20 s" in results.left_out[0].reason
    assert cases[2].title not in {title for title, _, _ in other.log}  # not even warmed up


def test_compiling_is_not_counted(planted):
    """The first round of each case takes 1000 s longer, and the first call of all does."""
    first_calls = {16: {"ours": 2, "plain": 1}, 17: {"ours": 1, "plain": 1}}
    cases = [
        planted.case("latency", n, lambda name, i, n=n: 1.0 + 1000 * (i < first_calls[n][name])) for n in first_calls
    ]
    results = planted.run(cases, 101, n_warm_up=2)
    assert results.first_call_seconds == pytest.approx(1001)
    # 100 s hold 50 rounds, of which two of each case are its warm-up.
    assert [found.n_rounds for found in results.measured] == [23, 23]


def reading_with(retries):
    """`retries[seed]`: decodings beyond the first, 0 for seeds not named."""
    return lambda seed: Outcome(100, 1, 0.1, 0.1, sentences=2, attempts=2 + retries.get(seed, 0))


@pytest.mark.parametrize(
    ("retries", "chosen", "n_tried"),
    [({}, 1, 1), ({1: 1}, 2, 2), ({1: 2, 2: 1}, 3, 3), ({1: 3, 2: 1, 3: 2, 4: 1}, 2, SEEDS_TRIED)],
)
def test_the_first_seed_that_reads_correctly_is_used(planted, retries, chosen, n_tried):
    passage = Passage(("x" * 16,))
    cases = [
        planted.case(measure, 16, lambda name, i: 0.1, reading_with(retries), passage)
        for measure in ("latency", "first_sound")
    ]
    results = planted.run(cases, 1000)
    assert passage.seed == chosen
    tried = [seed for title, name, seed in planted.log if title == cases[0].title and name == "plain"]
    assert list(dict.fromkeys(tried)) == list(range(1, n_tried + 1))
    assert tried[n_tried:] == [chosen] * (len(tried) - n_tried)
    assert {seed for title, _, seed in planted.log if title == cases[1].title} == {chosen}
    entry = as_object(results, RATE, {})["measurements"][0]
    assert entry["seed"] == chosen
    assert entry["attempts"] == dict.fromkeys(("ours", "plain"), 2 + retries.get(chosen, 0))


def test_a_fault_that_remains_is_a_reason_for_another_seed(planted):
    case = planted.case(
        "throughput", 128, lambda name, i: 0.1, lambda seed: Outcome(10, sentences=1, attempts=1, faulty=int(seed < 3))
    )
    planted.run([case], 100)
    assert case.passage.seed == 3


def test_a_call_that_needs_too_much_memory_is_left_out(planted):
    def too_large(seed):
        raise MemoryError

    small = planted.case("latency", 16, lambda name, i: 1.0)
    large = planted.case("throughput", 128, lambda name, i: 1.0, too_large, n_texts=3)
    results = planted.run([small, large], 1000)
    assert [(case.title, reason) for case, reason in results.left_out] == [("batch of 3", "there is not enough memory")]
    with pytest.raises(FastglowError, match="not enough memory for batch of 3"):
        planted.run([large], 1000)


def test_first_sound_needs_the_seed_of_its_text(planted):
    passage = Passage(("x" * 1000,))
    cases = [planted.case("latency", 10, lambda name, i: 1.0)]
    cases += [
        planted.case(measure, 1000, lambda name, i: 1.0, passage=passage) for measure in ("latency", "first_sound")
    ]
    results = planted.run(cases, 60)
    assert [case.measure for case, _ in results.left_out] == ["latency", "first_sound"]


def test_loading_is_measured_with_one_implementation(planted):
    cases = [planted.case("latency", 16, lambda name, i: 1.0), planted.case("load", 0, lambda name, i: 2.0)]
    latency, load = planted.run(cases, 200).measured
    assert set(latency.runs) == {"ours", "plain"} and set(load.runs) == {"ours"}
    assert set(seconds_of(load, "ours")) == {2.0}
