"""The gate on synthetic results."""

import json

import pytest

from bench import environment, gate, results
from bench.gate import FASTER, MISSING, NEW, OK, SLOWER, judge, judge_with_reruns

from .conftest import GPU, benchmark

NAMES = ["wavenet_layer/train-512-float16/forward", "affine_coupling/large-float16/backward"]
A, B = NAMES


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "nvidia-h200.json"
    path.write_text(json.dumps({"gpu": GPU, "ratios": {A: 0.5, B: 0.8}}))
    return path


def statuses(verdicts):
    return {verdict.name: verdict.status for verdict in verdicts}


@pytest.mark.parametrize(
    "ratio, status",
    [(0.5, OK), (0.5 * 1.0999, OK), (0.5 * 1.1001, SLOWER), (0.5 * 0.9001, OK), (0.5 * 0.8999, FASTER), (5.0, SLOWER)],
)
def test_changes_within_ten_percent_are_ok(ratio, status):
    assert statuses(judge({A: 0.5}, {A: ratio})) == {A: status}


def test_names_in_one_run_only():
    verdicts = judge({A: 0.5}, {B: 0.5})
    assert statuses(verdicts) == {A: MISSING, B: NEW}
    assert [verdict.measured for verdict in verdicts if verdict.name == A] == [None]
    assert [verdict.baseline for verdict in verdicts if verdict.name == B] == [None]


def test_only_slower_benchmarks_are_run_again():
    asked = []

    def rerun(names):
        asked.append(names)
        return {A: 0.5}

    verdicts = judge_with_reruns({A: 0.5, B: 0.8}, {A: 0.7, B: 0.8}, rerun)
    assert statuses(verdicts) == {A: OK, B: OK}
    assert asked == [[A], [A]]
    assert judge_with_reruns({A: 0.5}, {A: 0.5}, rerun) == judge({A: 0.5}, {A: 0.5})
    assert len(asked) == 2


@pytest.mark.parametrize(
    "again, status",
    [
        ([0.5, 0.5], OK),
        ([0.7, 0.5], SLOWER),  # two of three
        ([0.5, 0.7], SLOWER),
        ([0.7, 0.7], SLOWER),
        ([None, 0.5], SLOWER),  # a failed rerun does not count: the median of 0.7 and 0.5
        ([None, None], SLOWER),
    ],
)
def test_the_median_of_all_runs_decides(again, status):
    runs = iter(again)

    def rerun(names):
        ratio = next(runs)
        return {} if ratio is None else dict.fromkeys(names, ratio)

    assert statuses(judge_with_reruns({A: 0.5}, {A: 0.7}, rerun)) == {A: status}


def test_ratios_not_times_are_compared(write_run):
    rows = [benchmark(A, "fastglow", 0.005), benchmark(A, "eager", 0.010), benchmark(A, "compile", 0.001)]
    assert results.load([write_run(rows)]).ratios() == {A: 0.5}


def test_without_an_eager_time_there_is_no_ratio(write_run, baseline, capsys):
    run = write_run([benchmark(A, "fastglow", 0.5), benchmark(B, "fastglow", 0.8), benchmark(B, "eager", 1.0)])
    assert gate.main([str(run), "--baseline", str(baseline)]) == 1
    assert "MISSING" in capsys.readouterr().out


def test_passed(run_with_ratios, baseline, capsys):
    parts = [run_with_ratios({A: 0.52}), run_with_ratios({B: 0.6})]
    assert gate.main([*map(str, parts), "--baseline", str(baseline)]) == 0
    out = capsys.readouterr().out
    assert "gate: passed" in out
    assert "+4.0 %" in out
    assert "-25.0 %  faster" in out


@pytest.mark.parametrize(
    "ratios, status",
    [
        ({A: 0.6, B: 0.8}, "SLOWER"),
        ({A: 0.5}, "MISSING"),
        ({A: 0.5, B: 0.8, "weight_norm/wn-512-float16/forward": 0.1}, "NEW"),
    ],
)
def test_failed(run_with_ratios, baseline, capsys, ratios, status):
    assert gate.main([str(run_with_ratios(ratios)), "--baseline", str(baseline)]) == 1
    out = capsys.readouterr().out
    assert status in out
    assert "failed: 1 of" in out


def test_slow_benchmarks_are_run_again_on_the_same_gpu(run_with_ratios, baseline, monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "describe", lambda: {"gpu": GPU})
    monkeypatch.setattr(gate, "measure_again", lambda run, names: asked.append(names) or {A: 0.5})
    assert gate.main([str(run_with_ratios({A: 0.6, B: 0.8})), "--baseline", str(baseline)]) == 0
    assert asked == [[A], [A]]


def test_a_rerun_runs_ours_and_eager_only(run_with_ratios, monkeypatch):
    commands = []
    monkeypatch.setattr(gate.subprocess, "run", lambda command, **_: commands.append(command))
    run = results.load([run_with_ratios({A: 0.5, B: 0.8})])
    assert gate.measure_again(run, [A]) == {}
    assert commands[0][-2:] == [
        "bench/test_bench_wavenet_layer.py::test_wavenet_layer[fastglow-train-512-float16-forward]",
        "bench/test_bench_wavenet_layer.py::test_wavenet_layer[eager-train-512-float16-forward]",
    ]


def test_without_result_files_the_suite_is_run(run_with_ratios, baseline, monkeypatch, capsys):
    asked = []
    run = results.load([run_with_ratios({A: 0.5, B: 0.8})])
    monkeypatch.setattr(environment, "describe", lambda: {"gpu": GPU})
    monkeypatch.setattr(gate, "measure", lambda tests: asked.append(tests) or run)
    assert gate.main(["--baseline", str(baseline)]) == 0
    monkeypatch.setattr(gate, "measure", lambda tests: None)
    assert gate.main(["--baseline", str(baseline)]) == 2
    assert "no results" in capsys.readouterr().err
    assert asked == [["bench"]]


def test_nothing_runs_without_a_baseline(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gate, "measure", lambda tests: pytest.fail("the suite was run"))
    monkeypatch.setattr(environment, "BASELINES", tmp_path)
    for gpu, complaint in ((None, "had no GPU"), (GPU, "no baseline")):
        monkeypatch.setattr(environment, "describe", lambda gpu=gpu: {"gpu": gpu})
        assert gate.main([]) == 2
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("gpu, complaint", [("NVIDIA H100", "of NVIDIA H200"), (None, "had no GPU")])
def test_another_machine_is_refused(run_with_ratios, baseline, capsys, gpu, complaint):
    run = run_with_ratios({A: 0.5, B: 0.8}, gpu=gpu)
    before = baseline.read_bytes()
    for option in ([], ["--write"]):
        assert gate.main([str(run), "--baseline", str(baseline), *option]) == 2
        assert complaint in capsys.readouterr().err
    assert baseline.read_bytes() == before


def test_the_baseline_is_found_by_the_name_of_the_gpu(run_with_ratios, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "BASELINES", tmp_path / "baselines")
    run = str(run_with_ratios({A: 0.5, B: 0.8}))
    assert gate.main([run]) == 2
    assert "--write" in capsys.readouterr().err
    assert gate.main([run, "--write"]) == 0
    content = json.loads((tmp_path / "baselines" / "nvidia-h200.json").read_text())
    assert content == {
        "gpu": GPU,
        "torch": "2.13.0",
        "triton": "3.7.1",
        "commit": "0123abc",
        "ratios": {B: 0.8, A: 0.5},
    }
    assert gate.main([run]) == 0


def test_files_that_are_not_results(tmp_path, run_with_ratios, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text('{"benchmarks": []}')
    for arguments in ([str(broken)], [str(tmp_path / "absent.json")]):
        assert gate.main(arguments) == 2
        assert "not a benchmark result" in capsys.readouterr().err
    parts = [run_with_ratios({A: 0.5}), run_with_ratios({B: 0.5}, commit="other")]
    assert gate.main([str(part) for part in parts]) == 2
    assert "commit other" in capsys.readouterr().err
