"""Other people's models before and after `accelerate`: what is compared, and the report's table."""

import sys
from importlib import metadata

import pytest
import torch
from torch import nn

from bench import foreign, foreign_report, journal, report, results
from bench.foreign import Acceleration, vary
from bench.foreign_models import TARGETS, Cell, CoquiInvConvNear
from bench.rebuilt import VitsWN
from bench.workload import EAGER, FASTGLOW, FORWARD_BACKWARD, INFERENCE, Implementation

from .conftest import benchmark
from .test_report import cells

OURS, BEFORE = Implementation(FASTGLOW), Implementation(EAGER)


def small(target, training: bool) -> Acceleration:
    return Acceleration(target, training, torch.float32, small=True)


def test_every_target_has_its_own_name():
    assert len({target.case for target in TARGETS}) == len(TARGETS)
    assert {target.package for target in TARGETS} >= {
        "torchaudio", "transformers", "coqui-tts", "speechbrain", "tacotron2", "waveglow", "radtts", "espnet", "torch",
    }  # fmt: skip


@pytest.mark.parametrize("training, direction", [(False, INFERENCE), (True, FORWARD_BACKWARD)])
def test_before_and_after(training, direction):
    workload = small(TARGETS[0], training)
    assert workload.directions == (direction,)
    assert 0 <= workload.verify(OURS, direction) < 1e-5
    before, after, swaps = foreign._pairs[workload]
    assert type(before) is VitsWN
    assert type(after) is not VitsWN
    assert workload.details()["swapped"] == {"wavenet_layer": 1}
    assert not workload.details()["left"]
    assert workload.verify(BEFORE, direction) == 0
    for implementation in (OURS, BEFORE):
        assert len(workload.call(implementation, direction)()) == 1 + training
    swaps.undo()
    assert type(after) is VitsWN


@pytest.mark.parametrize("training", [False, True])
def test_a_wrong_result_is_found(training, monkeypatch):
    workload = small(Cell(), training)
    monkeypatch.setattr(foreign, "_pairs", {})
    (direction,) = workload.directions
    workload.verify(OURS, direction)
    after = foreign._pairs[workload].after
    after.register_forward_hook(lambda module, inputs, state: (1.01 * state[0], state[1]))
    with pytest.raises(AssertionError, match="results differ by 0.0"):
        workload.verify(OURS, direction)


def test_a_wrong_gradient_is_found(monkeypatch):
    workload = small(Cell(), training=True)
    monkeypatch.setattr(foreign, "_pairs", {})
    workload.verify(OURS, FORWARD_BACKWARD)
    after = foreign._pairs[workload].after
    after.weight_hh.register_hook(lambda gradient: 1.5 * gradient)
    with pytest.raises(AssertionError, match="after accelerate"):
        workload.verify(OURS, FORWARD_BACKWARD)


def test_a_missing_package_is_a_reason_to_skip(monkeypatch):
    monkeypatch.setitem(sys.modules, "TTS", None)
    with pytest.raises(pytest.skip.Exception, match="coqui-tts is not installed"):
        small(CoquiInvConvNear(), False).verify(OURS, INFERENCE)


def test_a_package_that_does_not_import_is_a_reason_to_skip(monkeypatch, tmp_path):
    (tmp_path / "TTS").mkdir()
    (tmp_path / "TTS" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN\\nmore')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "TTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="coqui-tts does not import here: undefined symbol: _ZN$"):
        small(CoquiInvConvNear(), False).verify(OURS, INFERENCE)


def test_new_models_are_varied():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[0].bias.copy_(torch.arange(5.0))
    vary(model)
    assert all(len(parameter.unique()) > 1 for parameter in model.parameters())
    torch.testing.assert_close(model[0].bias, 1.1 * torch.arange(5.0))


def test_outputs_of_any_kind_are_compared():
    x, y, z = torch.randn(2), torch.randn(3), torch.randn(())
    found = list(foreign._floats({"a": (x, None), "b": [torch.ones(2, dtype=torch.int64), {"c": y}], "d": 3, "e": z}))
    assert [a is b for a, b in zip(found, (x, y, z), strict=True)] == [True] * 3


NAME = "accelerate/vits-wn-float32/{}"
INFO = {
    "package": "coqui-tts 0.28.0",
    "module": "WN",
    "swapped": {"wavenet_layer": 4, "lstm_cell": 2},
    "shapes": {"x": [2, 192, 100], "mask": [2, 1, 100]},
    "dtype": "float32",
    "flops": 0,
}


def test_table(write_run):
    training, inference = NAME.format(FORWARD_BACKWARD), NAME.format(INFERENCE)
    rows = [
        benchmark(training, FASTGLOW, 20e-3, **INFO, error=1.234e-6, method="stream: host sync"),
        benchmark(training, EAGER, 50e-3, **INFO, error=0.0),
        benchmark(inference, EAGER, 3e-3, **INFO | {"swapped": {}}, error=0.0),
        benchmark("lstm_cell/small/forward", FASTGLOW, 1e-3),
    ]
    run = results.load([write_run(rows)])
    text = report.markdown(run)
    section = text.partition("## Other people's models, before and after accelerate")[2].partition("\n## ")[0]
    shapes = "x 2x192x100, mask 2x1x100"
    both, only_before = (line for line in section.splitlines() if line.startswith("| coqui-tts"))
    assert cells(both, "coqui") == [
        "coqui-tts 0.28.0", "WN, training", "4 x wavenet_layer, 2 x lstm_cell", shapes, "float32", "50 ms", "20 ms s",
        "2.50", "1e-06",
    ]  # fmt: skip
    assert cells(only_before, "coqui")[1:] == ["WN, inference", "nothing", shapes, "float32", "3 ms", "-", "-", "-"]
    assert "| accelerate/" not in text
    assert cells(text, "lstm_cell/small/forward")[1] == "1 ms"
    assert "| lstm_cell/" not in section
    assert foreign_report.section(results.load([write_run(rows[3:])])) == []
    assert run.ratios() == {}  # the gate leaves them out


def test_models_timed_in_turn(write_run):
    """On a CPU: the median of the ratios, not the ratio of the medians, in a table of their own."""
    name = NAME.format(INFERENCE)
    before = benchmark(name, EAGER, 9e-3, **INFO, median=9e-3)["extra_info"]
    ratios = {EAGER: {"float32": [1.5, 2.5, 1.75]}}
    row = benchmark(name, FASTGLOW, 3e-3, **INFO, ratios=ratios, in_turn=[before])
    text = report.markdown(results.load([write_run([row], gpu=None)]))
    assert cells(text, "coqui-tts 0.28.0")[5:8] == ["9 ms", "3 ms", "1.75 (1.50 to 2.50)"]
    assert "| accelerate/" not in text


def test_reasons_to_skip_are_listed(tmp_path):
    path = tmp_path / "journal.jsonl"
    for test, outcome, message in (
        ("t.py::later", journal.SKIPPED, "--time-limit 80 s is up"),
        ("t.py::later", journal.PASSED, ""),
        ("t.py::a", journal.SKIPPED, "coqui-tts is not installed"),
        ("t.py::b", journal.SKIPPED, "coqui-tts is not installed"),
        ("t.py::c", journal.SKIPPED, "espnet is not installed"),
    ):
        journal.append(path, {"test": test, "outcome": outcome, "seconds": 1.0, "message": message})
    lines = report.tests_section([path])
    assert "1 passed, 3 skipped." in lines
    assert [line for line in lines if line.startswith("- ")] == [
        "- skipped: 2 x coqui-tts is not installed",
        "- skipped: 1 x espnet is not installed",
    ]


def test_a_package_has_its_version_in_the_table():
    versions = {target.package: target.version() for target in TARGETS}
    assert versions["torch"] == f"torch {metadata.version('torch')}"
    assert versions["DeepLearningExamples"] == "DeepLearningExamples"
