"""Finds the fastest launch configuration of every kernel at the suite's shapes: `make tune`.

Each benchmark runs once to record which kernels it launches, their candidate configurations and shapes. Writes
kernels/configs/<gpu>.json, which `kernels/launch.py` reads. A configuration is chosen only if the benchmark's result
passes its check, and if items keep the bits that they have alone, where without tuning they do.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from fastglow.errors import FastglowError
from fastglow.files import replacing
from fastglow.kernels import launch
from fastglow.kernels.launch import Choice, Config

from . import environment, timing
from .workload import FASTGLOW, Implementation, Workload, all_workloads

Found = dict[tuple[str, str, tuple[tuple[str, int], ...]], Config]
"""The fastest configuration by (kernel, dtype, shape)."""

Seconds = Callable[[Workload, str], float]


def computations(workloads: Sequence[Workload]) -> Iterator[tuple[Workload, str]]:
    """Every (workload, direction), without composed workloads: they launch no other kernels."""
    for workload in workloads:
        for direction in workload.directions:
            if not workload.composed:
                yield workload, direction


def choices_of(workload: Workload, direction: str) -> list[Choice]:
    """The choices made during one call, without repetition, in order."""
    with launch.record_choices() as choices:
        workload.call(Implementation(FASTGLOW), direction)()
    return list({(choice.kernel, choice.dtype, choice.shape): choice for choice in choices}.values())


def tune(workload: Workload, direction: str, found: Found, seconds: Seconds) -> None:
    """Adds to `found` the fastest configurations at shapes that it lacks.

    A kernel that one call launches at several shapes gets one configuration for all of them.
    """
    new = [c for c in choices_of(workload, direction) if (c.kernel, c.dtype, c.shape) not in found]
    for kernel, dtype in dict.fromkeys((choice.kernel, choice.dtype) for choice in new):
        same = [choice for choice in new if (choice.kernel, choice.dtype) == (kernel, dtype)]
        times = [_seconds_with(kernel, config, workload, direction, seconds) for config in same[0].candidates]
        best = _fastest_right(same, times, workload, direction)
        for choice in same:
            found[kernel, dtype, choice.shape] = best
        listed = ", ".join(f"{1e6 * t:.1f}" for t in times)
        print(f"{workload.op} {workload.name} {direction}: {kernel} {dict(best)} of {listed} us", flush=True)


def _fastest_right(choices: Sequence[Choice], times: Sequence[float], workload: Workload, direction: str) -> Config:
    """The fastest configuration whose result passes the workload's check and does not depend on the batch.

    Raises:
        FastglowError: none does.
    """
    kernel, candidates = choices[0].kernel, choices[0].candidates
    for i in sorted(range(len(times)), key=times.__getitem__):
        if math.isinf(times[i]):
            continue
        try:
            with launch.use_config(kernel, candidates[i]):
                workload.verify(Implementation(FASTGLOW), direction)
            _check_items(workload, direction, choices, candidates[i])
            return candidates[i]
        except AssertionError as error:
            print(f"{workload.op} {workload.name} {direction}: {kernel} {dict(candidates[i])}: {error}", flush=True)
    raise FastglowError(f"{kernel}: no configuration passes the check of {workload.op} {workload.name}")


def _check_items(workload: Workload, direction: str, choices: Sequence[Choice], config: Config) -> None:
    """Raises AssertionError if an item's bits depend on its batch with this configuration, but not without it."""
    kernel = choices[0].kernel
    usual, with_config = [], []
    for alone in (True, False):
        torch.manual_seed(0)
        with launch.record_choices() as made:
            usual.append(workload.item(direction, alone))
        torch.manual_seed(0)
        # For another batch the library looks up another shape.
        with launch.use_config(kernel, config) if any(choice in choices for choice in made) else nullcontext():
            with_config.append(workload.item(direction, alone))
    if _equal(*usual):
        assert _equal(*with_config), "an item's result depends on its batch"


def _equal(alone: Sequence[Tensor], in_batch: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(alone, in_batch, strict=True))


def compile_candidates(workload: Workload, direction: str) -> None:
    """Runs every candidate once, so that Triton's cache has it when `tune` times it."""
    choices = {choice.kernel: choice.candidates for choice in choices_of(workload, direction)}
    for kernel, candidates in choices.items():
        for config in candidates:
            with suppress(OutOfResources), launch.use_config(kernel, config):
                workload.call(Implementation(FASTGLOW), direction)()


def _seconds_with(kernel: str, config: Config, workload: Workload, direction: str, seconds: Seconds) -> float:
    """Infinite where the configuration exceeds this GPU's shared memory or registers."""
    try:
        with launch.use_config(kernel, config):
            return seconds(workload, direction)
    except OutOfResources:
        return math.inf


def write(path: Path, found: Found) -> None:
    kernels: dict[str, list[dict]] = {}
    for (kernel, dtype, shape), config in found.items():
        kernels.setdefault(kernel, []).append({"dtype": dtype, "shape": dict(shape), "config": dict(config)})
    versions = {key: environment.describe()[key] for key in ("gpu", "torch", "triton")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({**versions, "kernels": kernels}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Found:
    """What an earlier, interrupted run found with the same versions; nothing if there is no such file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"kernels": {}}
    if any(content.get(key) != environment.describe()[key] for key in ("gpu", "torch", "triton")):
        return {}
    return {
        (kernel, entry["dtype"], tuple(entry["shape"].items())): entry["config"]
        for kernel, entries in content["kernels"].items()
        for entry in entries
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="default: kernels/configs/<gpu>.json")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    parser.add_argument(
        "--compile", type=part, metavar="I/N", help="only fill Triton's cache, with the Ith of N parts of the work"
    )
    options = parser.parse_args(arguments)
    gpu = environment.describe()["gpu"]
    if gpu is None:
        print("tune: this machine has no GPU: run it on the GPU to tune for", file=sys.stderr)
        return 2
    path = options.out or launch.CONFIG_FOLDER / f"{launch.gpu_slug(gpu)}.json"
    found = {} if options.fresh else read(path)

    def run(workload: Workload, direction: str) -> None:
        if options.compile:
            compile_candidates(workload, direction)
        else:
            tune(workload, direction, found, gpu_seconds)
            write(path, found)

    with torch.cuda.stream(torch.cuda.Stream()):
        failed = run_each(islice(computations(all_workloads()), *options.compile or (None,)), run)
    if not options.compile:
        print(f"wrote {path}")
    return 1 if failed else 0


def run_each(work: Iterable[tuple[Workload, str]], run: Callable[[Workload, str], None]) -> int:
    """How many failed: a kernel that is wrong or does not compile ends the tuning of its computation only."""
    failed = 0
    for workload, direction in work:
        try:
            run(workload, direction)
            torch.cuda.empty_cache()
        except Exception as error:
            failed += 1
            print(f"tune: {workload.op} {workload.name} {direction}: {error}", file=sys.stderr, flush=True)
    return failed


def part(text: str) -> tuple[int, None, int]:
    """'2/4' -> the arguments of a slice with every fourth, from the second on."""
    i, n = map(int, text.split("/"))
    if not 0 < i <= n:
        raise ValueError(text)
    return i - 1, None, n


def gpu_seconds(workload: Workload, direction: str) -> float:
    n = timing.sets_needed(workload.cost(direction).bytes, timing.cache_bytes())
    implementation = Implementation(FASTGLOW)
    calls = [workload.call(implementation, direction) for _ in range(n)]
    return timing.median_seconds(calls, workload.capturable(direction))


if __name__ == "__main__":
    sys.exit(main())
