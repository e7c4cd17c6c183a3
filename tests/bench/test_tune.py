"""The tuner with a fake kernel and clock, and the choices recorded by `kernels/launch.py`."""

import dataclasses
import json
import threading
from itertools import islice

import pytest
import torch
from triton.runtime.errors import OutOfResources

from bench import environment, tune
from bench.workload import FORWARD, Cost, Operation
from fastglow.errors import FastglowError
from fastglow.kernels import launch

CANDIDATES = ({"BT": 16, "num_warps": 4}, {"BT": 32, "num_warps": 8}, {"BT": 64, "num_warps": 8})


def kernel(x: torch.Tensor) -> torch.Tensor:
    launched.append(launch.pick_config("made_up_fwd", CANDIDATES, lambda dtype, rows: CANDIDATES[0], x, rows=len(x)))
    return x + 1


launched: list = []


def workload(rows: int) -> Operation:
    return Operation(
        "made_up",
        f"rows-{rows}",
        torch.float32,
        lambda: {"x": torch.zeros(rows)},
        kernel,
        kernel,
        {FORWARD: Cost(1, 1)},
    )


def test_choices_are_recorded_with_their_candidates():
    with launch.record_choices() as choices:
        kernel(torch.zeros(5, dtype=torch.float16))
    assert choices == [("made_up_fwd", CANDIDATES, "float16", (("rows", 5),))]
    kernel(torch.zeros(5))
    assert len(choices) == 1


def test_other_threads_use_the_tuners_configuration():
    """Autograd runs backward kernels on a GPU in its own threads."""
    with launch.record_choices() as choices, launch.use_config("made_up_fwd", CANDIDATES[2]):
        thread = threading.Thread(target=kernel, args=(torch.zeros(5),))
        thread.start()
        thread.join()
    assert len(choices) == 1
    assert launched[-1] == CANDIDATES[2]
    kernel(torch.zeros(5))
    assert launched[-1] == CANDIDATES[0]


def test_the_fastest_configuration_is_found_for_each_shape():
    found = {}
    timed = []

    def seconds(workload, direction):
        workload.function(torch.zeros(int(workload.case.removeprefix("rows-"))))
        timed.append(launched[-1])
        if launched[-1]["BT"] == 64:
            raise OutOfResources(2, 1, "shared memory")
        return abs(launched[-1]["BT"] - (16 if workload.case == "rows-8" else 32))

    for rows in (8, 100, 8):
        tune.tune(workload(rows), FORWARD, found, seconds)
    assert found == {
        ("made_up_fwd", "float32", (("rows", 8),)): CANDIDATES[0],
        ("made_up_fwd", "float32", (("rows", 100),)): CANDIDATES[1],
    }
    assert timed == [*CANDIDATES, *CANDIDATES]


def test_a_configuration_with_a_wrong_result_is_not_chosen(capsys):
    def wrong_with_the_fastest(x):
        return kernel(x) + (launched[-1]["BT"] == 16)

    def seconds(workload, direction):
        workload.function(torch.zeros(8))
        return float(launched[-1]["BT"])

    wrong = dataclasses.replace(workload(8), function=wrong_with_the_fastest)
    found = {}
    tune.tune(wrong, FORWARD, found, seconds)
    assert list(found.values()) == [CANDIDATES[1]]
    assert "relative error" in capsys.readouterr().out
    always = dataclasses.replace(workload(8), function=lambda x: kernel(x) + 1)
    with pytest.raises(FastglowError, match="no configuration passes"):
        tune.tune(always, FORWARD, {}, lambda workload, direction: 1.0)


def rounded_up(x: torch.Tensor) -> torch.Tensor:
    """An error that the workload's check allows."""
    return torch.nextafter(x, torch.full_like(x, torch.inf))


@pytest.mark.parametrize(
    "changes, by_batch, rows, expected",
    [
        pytest.param(lambda block, n: False, True, 8, 1, id="right"),
        pytest.param(lambda block, n: block == 32 and n > 1, True, 8, 2, id="depends on the batch"),
        pytest.param(lambda block, n: block == 32, True, 8, 2, id="not as the configuration of an item alone"),
        pytest.param(lambda block, n: block == 32, True, 1, 2, id="not as the configuration of a batch"),
        pytest.param(lambda block, n: block == 32, False, 8, 1, id="the same configuration for every batch"),
        pytest.param(lambda block, n: n > 1, True, 8, 1, id="depends on the batch without tuning too"),
    ],
)
def test_an_item_keeps_its_bits_in_a_batch(changes, by_batch, rows, expected):
    """The second candidate is the fastest; `changes(block size, items)`: whether it rounds otherwise."""

    def function(x):
        shape = {"rows": len(x)} if by_batch else {"columns": 1}
        config = launch.pick_config("made_up_fwd", CANDIDATES, lambda dtype, **shape: CANDIDATES[0], x, **shape)
        return rounded_up(x + 1) if changes(config["BT"], len(x)) else x + 1

    def seconds(workload, direction):
        function(torch.zeros(rows))
        return next(times)

    planted = dataclasses.replace(workload(rows), function=function, reference=lambda x: x + 1, per_item=("x",))
    times = iter([3.0, 1.0, 2.0])
    found = {}
    tune.tune(planted, FORWARD, found, seconds)
    assert list(found.values()) == [CANDIDATES[expected]]


def test_candidates_are_compiled_before_they_are_timed():
    launched.clear()
    tune.compile_candidates(workload(8), FORWARD)
    assert launched[1:] == list(CANDIDATES)
    assert [*islice("abcdefg", *tune.part("2/3"))] == ["b", "e"]
    with pytest.raises(ValueError):
        tune.part("4/3")


def test_a_kernel_that_fails_stops_no_other(capsys):
    seen = []

    def run(workload, direction):
        seen.append(workload.case)
        if workload.case == "rows-2":
            raise RuntimeError("no PTX")

    assert tune.run_each([(workload(rows), FORWARD) for rows in (1, 2, 3)], run) == 1
    assert seen == ["rows-1", "rows-2", "rows-3"]
    assert "made_up rows-2-float32 forward: no PTX" in capsys.readouterr().err


def test_an_interrupted_tuning_goes_on(tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    found = {("made_up_fwd", "float32", (("rows", 8),)): CANDIDATES[1]}
    tune.write(path, found)
    assert tune.read(path) == found
    assert tune.read(tmp_path / "none.json") == {}
    other = environment.describe() | {"triton": "9"}
    monkeypatch.setattr(environment, "describe", lambda: other)
    assert tune.read(path) == {}


@pytest.mark.parametrize("gpu", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_the_library_reads_the_written_file(tmp_path, monkeypatch, gpu):
    path = tmp_path / f"{launch.gpu_slug(gpu)}.json"
    monkeypatch.setattr(launch, "CONFIG_FOLDER", tmp_path)
    monkeypatch.setattr(launch, "gpu_of", lambda tensor: launch.gpu_slug(gpu))
    launch.forget_measurements()
    tune.write(
        path,
        {
            ("made_up_fwd", "float32", (("rows", 8),)): CANDIDATES[1],
            ("made_up_fwd", "float32", (("rows", 1024),)): CANDIDATES[2],
        },
    )
    content = json.loads(path.read_text())
    assert content.keys() == {"gpu", "torch", "triton", "kernels"}
    for rows, expected in ((8, 1), (20, 1), (500, 2), (4000, 2)):
        kernel(torch.zeros(rows))
        assert launched[-1] == CANDIDATES[expected]
    launch.forget_measurements()


def test_every_operation_of_the_suite_can_be_tuned():
    computations = list(tune.computations(tune.all_workloads()))
    assert {"gated_activation", "wavenet_layer", "waveglow"} <= {workload.op for workload, _ in computations}
    assert [workload.op for workload, _ in computations][-1] == "waveglow"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu(capsys):
    assert tune.main([]) == 2
    assert "no GPU" in capsys.readouterr().err
