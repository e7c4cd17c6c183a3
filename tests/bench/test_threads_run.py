"""bench.threads with fake times."""

import pytest

from bench import threads


@pytest.fixture
def timings(monkeypatch):
    """Replaces the processes by a table of seconds by setting; returns the settings run, in order."""
    turns = []

    def install(table):
        left = {name: list(values) for name, values in table.items()}

        def seconds(code, setting, limit):
            name = next(name for name, values in threads.SETTINGS.items() if values == setting)
            turns.append(name)
            return left[name].pop(0)

        monkeypatch.setattr(threads, "seconds", seconds)
        monkeypatch.setattr(threads, "prepare_clips", lambda folder: None)
        return turns

    return install


@pytest.mark.parametrize(
    "ours, others, code, ratio",
    [([1, 9, 2], [4, 2, 3], 0, "1.00"), ([4, 4, 4], [2, 1.9, 3], 0, "2.00"), ([5, 5, 5], [2, 2, 2], 1, "2.50")],
)
def test_the_medians_are_compared_with_the_best_setting(timings, capsys, ours, others, code, ratio):
    turns = timings({"fastglow": ours, "asleep": others, "one thread": [7, 7, 7]})
    arguments = ["--rounds", "3", "--busy", "0", "--work", "library", "--settings", "asleep", "one thread"]
    assert threads.main(arguments) == code
    assert turns == ["fastglow", "asleep", "one thread"] * 3
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"| {ratio} |")


def test_a_timeout_is_not_repeated(timings):
    turns = timings({"fastglow": [1, 1, 1], "spinning": [60]})
    assert threads.measure("", ["fastglow", "spinning"], 3, 60) == {"fastglow": 1, "spinning": 60}
    assert turns.count("spinning") == 1


def test_a_process_runs_with_its_setting_only(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    code = "import os; print(os.environ.get('OMP_NUM_THREADS', 0), os.environ.get('GOMP_SPINCOUNT', 0), sep='')"
    assert threads.seconds(code, {}, 60) == 0
    assert threads.seconds(code, threads.SETTINGS["one thread"], 60) == 10
    assert threads.seconds("import time; time.sleep(60)", {}, 0.5) == 0.5
