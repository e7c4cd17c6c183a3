"""Synthetic results in pytest-benchmark's format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GPU = "NVIDIA H200"


def benchmark(name: str, implementation: str, seconds: float, **info) -> dict:
    op, case, direction = name.split("/")
    return {
        "fullname": f"bench/test_bench_{op}.py::test_{op}[{implementation}-{case}-{direction}]",
        "stats": {"median": seconds},
        "extra_info": {
            "op": op,
            "case": case,
            "direction": direction,
            "implementation": implementation,
            "dtype": "float16",
            "bytes": 3_000_000,
            "flops": 6_000_000,
            "gigabytes_per_second": 3e-3 / seconds,
            "teraflops_per_second": 6e-6 / seconds,
            "bound": "memory",
            "percent_of_ceiling": 1e-4 / seconds,
            "percent_of_bfloat16_ceiling": 1e-5 / seconds,
            "samples_per_second": None,
            "peak_memory_bytes": 2**21,
            "method": "graph",
            "error": 2.5e-4,
            "targets": {},
            **info,
        },
    }


@pytest.fixture
def write_run(tmp_path) -> Callable[..., Path]:
    """`write_run([benchmark(...), ...], gpu=...)`: the path of a result file."""
    made = []

    def write(benchmarks: list[dict], gpu: str | None = GPU, commit: str = "0123abc") -> Path:
        path = tmp_path / f"run{len(made)}.json"
        made.append(path)
        ceilings = {"bytes_per_second": 3e12, "flops_per_second": {"float16": 8e14, "bfloat16": 8e14}}
        machine = {"gpu": gpu, "torch": "2.13.0", "triton": "3.7.1", "commit": commit, "ceilings": ceilings}
        if gpu is None:
            machine |= {"processor": "AMD EPYC", "capability": "AVX512", "threads": "2"}
            ceilings["reads"] = [[2**24, 5e10], [2**25, 4e10]]
        path.write_text(json.dumps({"machine_info": {"fastglow": machine}, "benchmarks": benchmarks}))
        return path

    return write


@pytest.fixture
def run_with_ratios(write_run) -> Callable[..., Path]:
    """`run_with_ratios({"op/case/direction": ratio})`: a run in which ours takes `ratio` ms and eager 1 ms."""

    def write(ratios: dict[str, float], **options) -> Path:
        pairs = [[benchmark(n, "fastglow", r * 1e-3), benchmark(n, "eager", 1e-3)] for n, r in ratios.items()]
        return write_run([row for pair in pairs for row in pair], **options)

    return write
