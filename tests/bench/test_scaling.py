"""The prediction of scaling: its parts against closed forms, and its buckets against DistributedDataParallel's own."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from bench import results
from bench.readme import README
from bench.scaling import __main__ as command
from bench.scaling import gradients, links, steps, stragglers, timeline
from bench.scaling.gradients import Gradient
from bench.scaling.links import Link
from bench.scaling.timeline import StepTime
from fastglow import Tacotron2, WaveGlow
from fastglow.errors import FastglowError

from ..train.conftest import ENVIRONMENT

MB = 2**20

# Prints the sizes of the buckets of DistributedDataParallel's second step, and the sizes of the gradients in the order
# in which they are ready.
BUCKETS = """
import json, torch, torch.distributed as dist
from bench.scaling import gradients
from fastglow.train.ranks import Ranks

class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # Registered in another order than they are used.
        self.last = torch.nn.Linear(900, 7)
        self.first = torch.nn.Linear(3, 1500)
        self.middle = torch.nn.ModuleList(torch.nn.Linear(1500, 1500) for _ in range(9))
        self.wide = torch.nn.Linear(1500, 900)

    def forward(self, x):
        x = self.first(x)
        for layer in self.middle:
            x = torch.tanh(layer(x))
        return self.last(self.wide(x))

dist.init_process_group("gloo", init_method="file://FILE", rank=0, world_size=1)
model = Branches()
x = torch.randn(2, 3)
ready = []
for parameter in model.parameters():
    parameter.register_post_accumulate_grad_hook(lambda p: ready.append(p.numel() * 4))
model(x).sum().backward()
sizes = list(ready)
model.zero_grad(set_to_none=True)
parallel = torch.nn.parallel.DistributedDataParallel(model)
for _ in range(3):
    parallel(x).sum().backward()
print(json.dumps([sizes, parallel._get_ddp_logging_data()["rebuilt_bucket_sizes"]]))
"""


def test_buckets_are_those_of_distributed_data_parallel(tmp_path):
    code = BUCKETS.replace("FILE", str(tmp_path / "store"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert run.returncode == 0, run.stderr
    ready, theirs = json.loads(run.stdout)
    ours = timeline.buckets([Gradient(i / len(ready), size) for i, size in enumerate(ready)])
    assert [bucket.size for bucket in ours] == [int(size) for size in theirs.split(",")]
    assert theirs.count(",") >= 3


def test_a_bucket_is_ready_with_its_last_gradient_and_none_is_lost():
    profile = [Gradient(0.1, 4), Gradient(0.2, MB), Gradient(0.5, 20 * MB), Gradient(0.8, 9 * MB), Gradient(0.9, 12)]
    found = list(timeline.buckets(profile))
    assert found == [Gradient(0.2, MB + 4), Gradient(0.8, 29 * MB), Gradient(0.9, 12)]
    assert list(timeline.buckets([])) == []


@pytest.mark.parametrize("ranks", [2, 7, 64])
@pytest.mark.parametrize("latency", [0.0, 3e-5])
def test_a_link_is_recovered_from_its_own_times(ranks, latency):
    link = Link("", ranks, latency, 1.7e11, "")
    found = links.fitted("", ranks, [(size, link.seconds(size, ranks)) for size in links.MEASURED_BYTES])
    assert found.latency == pytest.approx(latency, rel=1e-6, abs=1e-12)
    assert found.bus_bytes_per_second == pytest.approx(1.7e11, rel=1e-9)


def test_a_fit_of_noisy_times_is_the_least_squares_one():
    sizes = np.array(links.MEASURED_BYTES, dtype=float)
    times = (1e-4 + sizes / 1e9) * np.random.default_rng(0).uniform(0.8, 1.25, len(sizes))
    found = links.fitted("", 2, list(zip(sizes.astype(int).tolist(), times.tolist(), strict=True)))
    columns = np.stack([1 / times, sizes / times], axis=1)
    (latency, per_byte), *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    assert found.latency == pytest.approx(latency, rel=1e-6)
    assert found.bus_bytes_per_second == pytest.approx(1 / per_byte, rel=1e-6)


def test_a_fit_has_no_negative_latency():
    found = links.fitted("", 2, [(1000, 1e-6), (2000, 3e-6)])
    assert found.latency == 0 and found.seconds(1500, 2) > 0


def test_times_that_shrink_are_no_link():
    with pytest.raises(FastglowError, match="take no longer for more bytes: measure again"):
        links.fitted("", 2, [(1000, 1e-3), (2000, 4e-4), (4000, 1e-4)])


def test_seconds_of_a_link():
    link = Link("", 8, 3e-6, 100.0, "")
    assert link.seconds(1000, 1) == 0
    assert link.seconds(1000, 2) == pytest.approx(1e-6 + 10)
    assert link.seconds(1000, 64) == pytest.approx(6e-6 + 2 * 63 / 64 * 10)


FREE = Link("", 2, 0.0, float("inf"), "")
ALONE = StepTime(1.0, 2.0, 0.25)


def test_a_step_waits_for_nothing_on_a_free_link():
    step = timeline.several(ALONE, [Gradient(1.0, 50 * MB)], FREE, 8)
    assert step == ALONE and step.overlap == 1


def test_gradients_that_are_ready_at_the_end_are_not_hidden():
    link = Link("", 2, 0.5, 1.0, "")
    step = timeline.several(ALONE, [Gradient(1.0, 3)], link, 2)
    assert (step.communicating, step.waiting, step.overlap) == (3.5, 3.5, 0)
    assert step.seconds == 1 + 2 + 3.5 + 0.25


def test_all_reduces_follow_each_other():
    """By hand: 26 MB are ready at 0.5 s and take 1 s, 25 MB at 1.0 s wait until 1.5 s, 1 MB at 2 s until 2.46 s."""
    link = Link("", 2, 0.0, 26.0 * MB, "")
    profile = [Gradient(0.25, 26 * MB), Gradient(0.5, 25 * MB), Gradient(1.0, MB)]
    step = timeline.several(ALONE, profile, link, 2)
    assert step.waiting == pytest.approx(0.5 + 52 / 26 - 2)
    assert step.communicating == pytest.approx(52 / 26)


def test_slowdown_is_the_mean_of_the_longest():
    """The largest of n numbers below N is N n / (n + 1) on average."""
    lengths = list(range(1, 4001))
    assert stragglers.slowdown(lengths, 1, 4) == pytest.approx((4 / 5) / (1 / 2), rel=0.02)
    assert stragglers.slowdown(lengths, 1, 1) == 1
    assert stragglers.slowdown([7] * 50, 3, 5) == 1
    assert stragglers.slowdown(lengths, 2, 4, bucket_batches=50) < stragglers.slowdown(lengths, 2, 4)


def test_lengths_like_those_of_ljspeech():
    lengths = np.array(stragglers.ljspeech_like())
    assert len(lengths) == 13_100
    assert lengths.mean() == pytest.approx(566, rel=0.01) and lengths.std() == pytest.approx(189, rel=0.02)
    assert lengths.min() >= 96 and lengths.max() <= 870


def test_gradients_are_measured_in_the_order_of_the_backward_pass():
    model = nn.Sequential(*(nn.Linear(n, n + 1, bias=False) for n in range(3, 9)))
    unused = nn.Parameter(torch.zeros(5))
    parameters = [*model.parameters(), unused]
    found = gradients.measure(parameters, lambda: model(torch.randn(2, 3)).sum())
    sizes = [4 * n * (n + 1) for n in range(3, 9)]
    assert [size for _, size in found] == [*reversed(sizes), 20]
    assert found[-1] == Gradient(1.0, 20)
    assert all(0 < ready <= 1 for ready, _ in found)
    assert all(parameter.grad is None and not parameter._post_accumulate_grad_hooks for parameter in parameters)


@pytest.mark.parametrize("name", ["tacotron2", "waveglow-256", "waveglow-512"])
def test_the_measured_gradients_are_those_of_the_published_models(name):
    with torch.device("meta"):
        if name == "tacotron2":
            model = Tacotron2()
        else:
            model = WaveGlow(WN_config={"n_layers": 8, "n_channels": int(name[-3:]), "kernel_size": 3})
    assert sorted(g.size for g in gradients.load(name)) == sorted(4 * p.numel() for p in model.parameters())


def test_a_model_that_was_not_measured(tmp_path):
    with pytest.raises(FastglowError, match="has no glow: run `python -m bench.scaling gradients`"):
        gradients.load("glow")
    path = tmp_path / "readiness.json"
    gradients.save("a", [Gradient(0.12345, 8)], path)
    gradients.save("b", [Gradient(1.0, 4), Gradient(1.0, 12)], path)
    assert gradients.load("a", path) == [Gradient(0.123, 8)]
    assert gradients.load("b", path) == [Gradient(1.0, 4), Gradient(1.0, 12)]


def report(*benchmarks):
    """A run's file as pytest-benchmark writes it."""
    machine = {"gpu": None, "torch": "2", "triton": "3", "commit": "c", "processor": "p"}
    machine["ceilings"] = {"bytes_per_second": 1e11}
    return json.dumps({"machine_info": {"fastglow": machine}, "benchmarks": benchmarks})


def benchmark(op, case, seconds, **info):
    info = {"op": op, "case": case, "direction": "train_step", "implementation": "fastglow", "batch": 10, **info}
    info = {"samples_per_second": None, "frames_per_second": None, **info}
    return {"fullname": case, "extra_info": info, "stats": {"median": seconds}}


def test_steps_of_a_report(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(
        report(
            benchmark("waveglow", "train-256-off", 4.0, samples_per_second=500.0),
            benchmark("waveglow", "train-small-off", 4.0, samples_per_second=500.0),
            benchmark("waveglow", "train-256-off", 9.0, samples_per_second=1.0, implementation="peer"),
            benchmark("tacotron2", "train-bf16", 2.0, frames_per_second=300.0),
            benchmark("waveglow", "inference-256", 4.0, direction="inference"),
        )
    )
    waveglow, tacotron2 = steps.measured(results.load([path]))
    assert (waveglow.model, waveglow.unit, waveglow.units, waveglow.seconds) == ("waveglow-256", "samples", 2000, 4.0)
    assert (tacotron2.model, tacotron2.unit, tacotron2.units, tacotron2.batch) == ("tacotron2", "frames", 600, 10)
    parts = waveglow.parts()
    assert parts.seconds == pytest.approx(4.0) and parts.backward == pytest.approx(2 * parts.forward)
    assert parts.optimizer == pytest.approx(24 * sum(g.size for g in waveglow.profile()) / 4 / 1e11)
    twice = waveglow.parts(accumulate=2)
    assert twice.seconds == pytest.approx(2 * 4.0 - parts.optimizer) and twice.backward == parts.backward


def test_a_report_without_steps(tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(report(benchmark("waveglow", "inference-256", 4.0, direction="inference")))
    assert command.main(["predict", str(path)]) == 2
    assert "the results have no training step" in capsys.readouterr().err


def test_predict_from_a_report_and_a_measured_link(tmp_path, capsys):
    path, link = tmp_path / "bench.json", tmp_path / "link.json"
    path.write_text(report(benchmark("tacotron2", "train-bf16", 2.0, frames_per_second=300.0)))
    links.save(Link("gloo, 2 processes", 2, 1e-4, 1e9, "measured"), link)
    assert command.main(["predict", str(path), "--link", str(link), "--ranks", "2", "16"]) == 0
    page = capsys.readouterr().out
    assert "Steps: p, torch 2, commit c." in page
    assert "| tacotron2/train-bf16/train_step | 16 | gloo, 2 processes | 160 | 2000.0 |" in page
    assert "gloo, 2 processes: bus bandwidth 1 GB/s, latency 100 us for 2 (measured)." in page


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"name": "", "ranks": 1, "latency": 0, "bus_bytes_per_second": 1, "source": ""}',
     '{"name": "", "ranks": 2, "latency": NaN, "bus_bytes_per_second": 1, "source": ""}',
     '{"name": "", "ranks": 2, "latency": 0, "bus_bytes_per_second": 0, "source": ""}'],
)  # fmt: skip
def test_a_file_that_is_no_link(tmp_path, capsys, content):
    path = tmp_path / "link.json"
    path.write_text(content)
    assert command.main(["predict", "--link", str(path)]) == 2
    assert f"{path} is not a measured link" in capsys.readouterr().err


def test_the_page_in_the_readme_is_what_the_command_writes(tmp_path, capsys, monkeypatch):
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(command, "README", copy)
    assert command.main(["predict", "--publish"]) == 0
    assert copy.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")


def test_a_link_needs_several_processes(tmp_path, capsys):
    out = tmp_path / "link.json"
    assert command.main(["link", "--out", str(out)]) == 2
    assert "world_size=1 has no link to measure: start several processes with torchrun" in capsys.readouterr().err
    assert not out.exists()


def test_link_and_check_between_two_processes(tmp_path):
    """Their values depend on the machine; that they are made does not."""
    out = tmp_path / "link.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = [*torchrun, "-m", "bench.scaling", "link", "--out", str(out)]
    done = subprocess.run(run, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (link := links.load(out)).ranks == 2 and link.source == "measured" and link.name == "gloo, 2 processes"
    small = ["--channels", "16", "--samples", "512"]
    done = subprocess.run(
        [*torchrun, "-m", "bench.scaling", "check", *small],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "MB of gradients; forward and backward pass" in done.stdout and "predicted" in done.stdout
