"""The report on synthetic results."""

import json

from bench import journal, report, results, targets

from .conftest import benchmark

NAME = "gated_activation/train-512-float16/forward"


def cells(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table(write_run):
    rows = [
        benchmark(NAME, "fastglow", 20e-6, percent_of_ceiling=88.04),
        benchmark(NAME, "eager", 70e-6),
        benchmark(NAME, "compile", 4e-3, method="stream: host sync"),
    ]
    text = report.markdown(results.load([write_run(rows)]))
    assert cells(text, NAME) == [
        NAME, "20 us", "70 us", "4 ms s", "-", "3.50", "150", "0.3", "88.0", "memory", "2 MiB",
    ]  # fmt: skip
    assert "copy 3000 GB/s; matrix product float16 800 TFLOP/s" in text


def test_targets(write_run):
    rows = [
        benchmark(NAME, "fastglow", 20e-6, percent_of_ceiling=84.9, targets={"percent_of_ceiling": 85}),
        benchmark(NAME, "compile", 20e-6),
        benchmark("waveglow/train-512/train_step", "fastglow", 0.1, samples_per_second=1.6e6,
                  targets={"samples_per_second": 1.5e6}),
        benchmark("waveglow/train-512/train_step", "compile", 0.09),
    ]  # fmt: skip
    run = results.load([write_run(rows)])
    table = run.by_name()
    assert targets.judged(table[NAME]) == [
        (">= 85.0 % of ceiling", "MISSED (84.9 % of ceiling)"),
        (">= 1.00 x compile", "met (1.00 x)"),
    ]
    assert targets.judged(table["waveglow/train-512/train_step"]) == [
        (">= 1,500,000 samples/s", "met (1,600,000 samples/s)"),
        (">= 1.00 x compile", "MISSED (0.90 x)"),
    ]
    assert "2 of 4 targets met." in report.markdown(run)


def test_absolute_targets_follow_the_ceilings():
    """They are stated for an H200: 4.3 TB/s and 790 TFLOP/s."""
    h200 = {"bytes_per_second": 4.3e12, "flops_per_second": {"bfloat16": 790e12}}
    half = {"bytes_per_second": 2.15e12, "flops_per_second": {"bfloat16": 1580e12}}
    assert targets.scaled("us_per_frame", 12, "memory", h200) == 12
    assert targets.scaled("us_per_frame", 12, "memory", half) == 24
    assert targets.scaled("samples_per_second", 1.5e6, "arithmetic", half) == 3e6
    assert targets.scaled("frames_per_second", 1e6, "memory", half) == 0.5e6
    assert targets.scaled("percent_of_ceiling", 85, "memory", half) == 85
    assert targets.scaled("us_per_frame", 12, "memory", None) == 12
    info = {"targets": {"us_per_frame": 12}, "us_per_frame": 20.0, "bound": "memory"}
    rows = {"fastglow": results.Row("a/b/c", "fastglow", 1.0, "", info)}
    assert targets.judged(rows, half) == [("<= 24.0 us/frame", "met (20.0 us/frame)")]
    assert targets.judged(rows, h200) == [("<= 12.0 us/frame", "MISSED (20.0 us/frame)")]


def test_frames(write_run):
    decoding, training = "decode_loop/graph-1x128-float16/inference", "teacher_forced_loop/128/forward_backward"
    rows = [
        benchmark(decoding, "fastglow", 3.2e-3, us_per_frame=25.0, targets={"us_per_frame": 25}),
        benchmark(decoding, "eager", 128e-3, us_per_frame=1000.0),
        benchmark(training, "fastglow", 0.05, frames_per_second=1.024e6, targets={"frames_per_second": 1e6}),
        benchmark(NAME, "fastglow", 20e-6),
    ]
    run = results.load([write_run(rows)])
    table = run.by_name()
    assert targets.judged(table[decoding]) == [("<= 25.0 us/frame", "met (25.0 us/frame)")]
    table[decoding]["fastglow"].info["us_per_frame"] = 25.1
    assert targets.judged(table[decoding]) == [("<= 25.0 us/frame", "MISSED (25.1 us/frame)")]
    assert targets.judged(table[training]) == [(">= 1,000,000 frames/s", "met (1,024,000 frames/s)")]
    section = report.markdown(run).partition("## Mel frames")[2].partition("## ")[0]
    assert cells(section, decoding)[1:] == ["25.1 us/frame", "1000.0 us/frame", "-", "-"]
    assert cells(section, training)[1:] == ["1,024,000 frames/s", "-", "-", "-"]
    assert NAME not in section
    assert "Mel frames" not in report.markdown(results.load([write_run(rows[3:])]))


def step(precision: str, implementation: str, rate: float, batch: int = 10, **info) -> dict:
    """A training step of 80,000 samples."""
    return benchmark(f"waveglow/train-512-{precision}/train_step", implementation, 8e4 / rate,
                     samples_per_second=rate, precision=precision, batch=batch, **info)  # fmt: skip


def test_training_steps(write_run):
    rows = [
        step("fp16", "fastglow", 1.6e6),
        step("fp16", "peer", 0.5e6, method="stream: host sync", peak_memory_bytes=3 * 2**30),
        step("off", "fastglow", 0.4e6, batch=4),
        step("off", "eager", 0.2e6, batch=4),
        benchmark(NAME, "fastglow", 1e-3),
    ]
    section = report.markdown(results.load([write_run(rows)])).partition("## Training steps")[2]
    assert cells(section, "waveglow/train-512-fp16/train_step")[1:] == [
        "10", "50 ms, 1,600,000 samples/s, 2 MiB", "-", "-", "160 ms s, 500,000 samples/s, 3,072 MiB", "4.00",
    ]  # fmt: skip
    assert cells(section, "waveglow/train-512-off/train_step")[1:] == [
        "4", "200 ms, 400,000 samples/s, 2 MiB", "400 ms, 200,000 samples/s, 2 MiB", "-", "-", "1.00",
    ]  # fmt: skip
    assert f"| {NAME}" not in section
    assert "Training steps" not in report.markdown(results.load([write_run(rows[-1:])]))


def saving(implementation: str, seconds: float, activations: int | None, **info) -> dict:
    return benchmark("waveglow/train-512-saving-fp16/train_step", implementation, seconds, precision="fp16", batch=10,
                     samples_per_second=8e4 / seconds, activation_bytes=activations, **info)  # fmt: skip


def test_memory_of_training(write_run):
    ours = {"activations_of_peer": 0.25, "times_ordinary": 1.35}
    rows = [
        saving("fastglow", 0.13, 2**30, targets=ours),
        saving("ordinary", 0.1, 5 * 2**30),
        saving("peer", 0.3, 10 * 2**30),
        step("off", "fastglow", 0.4e6, activation_bytes=2**21),
        benchmark(NAME, "fastglow", 1e-3),
    ]
    run = results.load([write_run(rows)])
    section = report.markdown(run).partition("## Memory of training")[2].partition("## ")[0]
    assert cells(section, "waveglow/train-512-saving")[1:] == ["1,024 MiB", "5,120 MiB", "10,240 MiB", "0.10", "1.30"]
    assert cells(section, "waveglow/train-512-off")[1:] == ["2 MiB", "-", "-", "-", "-"]
    assert NAME not in section
    name = "waveglow/train-512-saving-fp16/train_step"
    assert targets.judged(run.by_name()[name]) == [
        ("<= 0.25 x NVIDIA's activation memory", "met (0.10 x NVIDIA's activation memory)"),
        ("<= 1.35 x the ordinary time", "met (1.30 x the ordinary time)"),
    ]
    rows = [saving("fastglow", 0.14, 2**30, targets=ours), saving("ordinary", 0.1, 2**30), saving("peer", 1, 2**31)]
    assert [result.split()[0] for _, result in targets.judged(results.load([write_run(rows)]).by_name()[name])] == [
        "MISSED", "MISSED",
    ]  # fmt: skip
    assert "Memory of training" not in report.markdown(results.load([write_run([benchmark(NAME, "fastglow", 1e-3)])]))


def test_memory_saving_timed_in_turn(write_run):
    """The median of the ratios, not the ratio of the medians."""
    other = saving("ordinary", 1.0, None, median=1.0)["extra_info"]
    row = saving("fastglow", 4.0, 2**20, median=4.0, ratios={"ordinary": {"float16": [0.5, 0.8, 1.0]}}, in_turn=[other],
                 targets={"times_ordinary": 1.35})  # fmt: skip
    run = results.load([write_run([row], gpu=None)])
    ((_, rows),) = run.by_name().items()
    assert targets.judged(rows) == [("<= 1.35 x the ordinary time", "met (1.25 x the ordinary time)")]


def test_steps_timed_in_turn(write_run):
    """The median of the ratios, not the ratio of the medians."""
    cpu = {"peak_memory_bytes": None, "implementations": ["fastglow"], "median": 4.0}
    off = step("off", "fastglow", 2e4, **cpu, dtype="float32")["extra_info"]
    ratios = {"fastglow": {"bfloat16": [1.0] * 3, "float32": [1.5, 2.5, 1.75]}}
    row = step("bf16", "fastglow", 4e4, **cpu, dtype="bfloat16", ratios=ratios, in_turn=[off])
    text = report.markdown(results.load([write_run([row], gpu=None)]))
    section = text.partition("## Training steps")[2]
    assert cells(section, "waveglow/train-512-off/")[1:] == ["10", "4,000 ms, 20,000 samples/s", "-", "-", "-", "1.00"]
    assert cells(section, "waveglow/train-512-bf16/")[1:] == [
        "10", "2,000 ms, 40,000 samples/s", "-", "-", "-", "1.75 (1.50 to 2.50)",
    ]  # fmt: skip
    assert "Failed or skipped" not in text  # eager is the same there


def test_a_table_of_a_cpu(write_run):
    """A row for each precision, with the times of all that were timed in turn with it."""
    name = "decode_loop/cpu-1x128-{}/inference"

    def of(implementation: str, dtype: str, seconds: float, **info) -> dict:
        return benchmark(name.format(dtype), implementation, seconds, dtype=dtype, us_per_frame=1e6 * seconds / 128,
                         median=seconds, **info)  # fmt: skip

    ratios = {"eager": {"bfloat16": [3.0, 9.0, 4.0]}, "peer": {"bfloat16": [5.0] * 3, "float32": [1.0, 6.25, 7.0]}}
    ours = of("fastglow", "bfloat16", 0.128, ratios=ratios, percent_of_memory_rate=61.4, error=0.00321, times_peer=6.25,
              targets={"us_per_frame": 1500, "times_peer": 6.5})  # fmt: skip
    others = [
        of("eager", "bfloat16", 0.5),
        of("peer", "bfloat16", 0.64),
        of("fastglow", "float32", 0.256, ratios={"peer": {"float32": [3.0, 3.5, 2.0]}}),
        of("peer", "float32", 0.8),
        of("fastglow", "int8", 0.0768, ratios={}, flops=0),
    ]
    ours["extra_info"]["in_turn"] = [other["extra_info"] for other in others]
    run = results.load([write_run([ours], gpu=None)])
    text = report.markdown(run)
    assert "AMD EPYC, AVX512, 2 thread(s); torch 2.13.0, commit 0123abc. Ceilings: " in text
    assert "copy 3000 GB/s, reading 16.8 MB 50 GB/s, reading 33.6 MB 40 GB/s; matrix product" in text
    assert cells(text, name.format("bfloat16"))[1:] == [
        "1.00 ms a frame", "3.91 ms a frame", "-", "5.00 ms a frame", "4.00", "-", "5.00", "6.25", "61 % of reading",
        "0.003",
    ]  # fmt: skip
    assert cells(text, name.format("float32"))[4:10] == ["6.25 ms a frame", "-", "-", "3.00", "3.00", "0 % of copying"]
    assert cells(text, name.format("int8"))[1:] == ["0.60 ms a frame", *["-"] * 8, "0.0003"]
    assert targets.verdicts(run)[name.format("bfloat16")] == [
        ("<= 1500.0 us/frame", "met (1000.0 us/frame)"),  # not scaled by the ceilings
        (">= 6.50 x NVIDIA's in float32", "MISSED (6.25 x NVIDIA's in float32)"),
    ]


def test_failed_benchmarks_are_named(write_run):
    text = report.markdown(results.load([write_run([benchmark(NAME, "eager", 1e-3)])]))
    assert f"Failed or skipped: {NAME} (ours)." in text
    assert cells(text, NAME)[1:3] == ["-", "1 ms"]


def test_files(write_run, tmp_path):
    parts = [write_run([benchmark(NAME, name, 1e-3)]) for name in ("fastglow", "eager")]
    out = tmp_path / "out"
    assert report.main([*map(str, parts), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"report.md", "results.json", "roofline.png"}
    assert (out / "roofline.png").read_bytes().startswith(b"\x89PNG")
    everything = json.loads((out / "results.json").read_text())
    assert [row["implementation"] for row in everything["benchmarks"]] == ["fastglow", "eager"]
    assert everything["machine"]["gpu"] == "NVIDIA H200"


def test_a_run_without_a_gpu(write_run, tmp_path):
    row = benchmark(NAME, "fastglow", 1e-3, peak_memory_bytes=None, percent_of_bfloat16_ceiling=None,
                    targets={"percent_of_bfloat16_ceiling": 45})  # fmt: skip
    run = results.load([write_run([row], gpu=None)])
    assert targets.judged(run.by_name()[NAME]) == []
    assert report.markdown(run).startswith("# fastglow on a CPU\n")


def test_nothing_to_report(tmp_path, capsys):
    assert report.main([str(tmp_path / "absent.json"), "--out", str(tmp_path)]) == 2
    assert "not a benchmark result" in capsys.readouterr().err


def test_failed_tests_are_listed_also_without_benchmarks(tmp_path):
    path = tmp_path / "journal.jsonl"
    cause, consequence = "E       ValueError: the\n    cause\n", "E   Failed: DID NOT WARN\n"
    for test, outcome, message in (
        ("t.py::repaired", journal.FAILED, "E   ValueError: gone"),
        ("t.py::repaired", journal.PASSED, ""),
        ("t.py::wrong", journal.FAILED, f">       f()\n{cause}\nt.py:1: ValueError\n{consequence}"),
        ("t.py::crashed", journal.FAILED, "no trace"),
        ("t.py::other", journal.SKIPPED, ""),
    ):
        journal.append(path, {"test": test, "outcome": outcome, "seconds": 1.0, "message": message})
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "2 failed, 1 passed, 1 skipped." in text
    assert [line for line in text.splitlines() if line.startswith("- ")] == [
        "- `t.py::wrong`: ValueError: the",
        "- `t.py::crashed`: no trace",
    ]
