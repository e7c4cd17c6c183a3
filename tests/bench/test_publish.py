"""The files to commit after a run."""

import json

from bench import journal, publish

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
        path, *others = publish.publish([run_of(write_run, gpu, 30.0)], tmp_path / "baselines", readme, seconds)
        assert (path.name, others) == (f"{slug}.json", [readme, seconds])
        content = json.loads(path.read_text())
        assert (content["gpu"], content["ratios"]) == (gpu, {NAME: 0.5})
    text = readme.read_text()
    assert text.startswith(README)
    assert text.count("met (30.0 us/frame)") == 2  # of 25 us * 4.3 / 3 TB/s
    publish.publish([run_of(write_run, "NVIDIA H200", 40.0)], tmp_path / "baselines", readme, seconds)
    again = readme.read_text()
    before, heading, after = text.partition("### NVIDIA H200")
    after = after.replace("met (30.0", "MISSED (40.0").replace("1 of 1 targets met", "0 of 1 targets met")
    assert again == before + heading + after


def test_a_cpu_has_tables_only(tmp_path, write_run):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    for us in (30.0, 20.0):
        run = run_of(write_run, None, us)
        assert publish.publish([run], tmp_path / "baselines", readme, tmp_path / "seconds.json") == [readme]
    text = readme.read_text()
    assert text.startswith(README)
    assert not (tmp_path / "baselines").exists()
    assert text.count("met (20.0 us/frame)") == 1
    assert "30.0 us" not in text  # the last run replaces the one before
    assert text.count("AMD EPYC, AVX512, 2 thread(s); torch 2.13.0") == 1
    assert f"| {NAME} | 0.02 ms a frame | 0.04 ms a frame |" in text


def test_the_next_run_expects_what_the_steps_took(tmp_path):
    path = tmp_path / "journal.jsonl"
    for step, code, took in (("a", 1, 30.0), ("b", 1, 9.0), ("a", 0, 12.5), ("report", 0, 2.0), ("c", 0, 1.0)):
        journal.append(path, {"step": step, "code": code, "seconds": took})
    assert publish.measured_seconds([path]) == {"a": 42.5, "c": 1.0}
