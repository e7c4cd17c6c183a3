"""The files to commit after a run."""

import json

import pytest

from bench import journal, publish
from fastglow.errors import FastglowError

from .conftest import benchmark

NAME = "decode_loop/graph-1x128-float16/inference"
README = "# Benchmarks\n\ntext\n"


def run_of(write_run, gpu: str, us: float):
    rows = [
        benchmark(NAME, "fastglow", 1e-3, us_per_frame=us, targets={"us_per_frame": 25}),
        benchmark(NAME, "eager", 2e-3, us_per_frame=2 * us),
    ]
    return write_run(rows, gpu=gpu)


def test_both_gpus_have_a_baseline_and_a_table(tmp_path, write_run):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    (seconds := tmp_path / "seconds.json").write_text("{}")
    names = {"nvidia-h100-80gb-hbm3": "NVIDIA H100 80GB HBM3", "nvidia-h200": "NVIDIA H200"}
    for slug, gpu in names.items():
        path = publish.publish([run_of(write_run, gpu, 30.0)], tmp_path / "baselines", readme, seconds)
        assert path.name == f"{slug}.json"
        content = json.loads(path.read_text())
        assert (content["gpu"], content["ratios"]) == (gpu, {NAME: 0.5})
    text = readme.read_text()
    assert text.startswith(README)
    assert text.count("met (30.0 us/frame)") == 2  # of 25 us * 4.3 / 3 TB/s
    publish.publish([run_of(write_run, "NVIDIA H200", 40.0)], tmp_path / "baselines", readme, seconds)
    again = readme.read_text()
    assert again == text.replace("### NVIDIA H200", "@", 1).partition("@")[0] + "### NVIDIA H200" + text.partition(
        "### NVIDIA H200"
    )[2].replace("met (30.0", "MISSED (40.0")


def test_a_run_without_a_gpu_is_refused(tmp_path, write_run):
    with pytest.raises(FastglowError, match="had no GPU"):
        publish.publish([run_of(write_run, None, 1.0)], tmp_path, tmp_path / "README.md", tmp_path / "seconds.json")


def test_the_next_run_expects_what_the_steps_took(tmp_path):
    path = tmp_path / "journal.jsonl"
    for step, code, took in (("a", 1, 30.0), ("b", 1, 9.0), ("a", 0, 12.5), ("report", 0, 2.0), ("c", 0, 1.0)):
        journal.append(path, {"step": step, "code": code, "seconds": took})
    assert publish.measured_seconds([path]) == {"a": 42.5, "c": 1.0}
