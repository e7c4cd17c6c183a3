"""Counts and compiles the published calls in processes of their own, and compares with the committed file."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastglow.files import replacing

from ..environment import ROOT
from ..readme import README, write_between
from .binaries import identity
from .chips import occupancy
from .tables import MARKERS, tables

PREDICTED = Path(__file__).with_name("predicted.json")
TOLERANCE = 0.02
"""Relative change of a count that needs no new file, such as from a mask."""

# Two processes of about the same length.
PARTS = (
    ("decode_loop", "teacher_forced_loop"),
    (
        "affine_coupling ", "gated_activation ", "invertible_conv1x1 ", "location_attention ", "lstm_cell ", "prenet ",
        "waveglow ", "wavenet_layer ", "weight_norm ",
    ),
)  # fmt: skip


def predict_all(parts: Sequence[Sequence[str]] = PARTS, with_binaries: bool = True) -> list[dict[str, Any]]:
    """The calls as predicted.json has them.

    Args:
        parts: parts of calls' names, one tuple per process.
        with_binaries: compile the launches too.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(parts)) as pool:
        path = Path(folder)

        def count(i: int) -> list[dict[str, Any]]:
            target = path / f"{i}.pickle"
            _run("counted", {"TRITON_INTERPRET": "1"}, str(target), *parts[i])
            return pickle.loads(target.read_bytes())

        calls = [call for found in pool.map(count, range(len(parts))) for call in found]
        sources = sorted({x["source"] for call in calls for x in call["launches"]})

        def compile_some(i: int) -> dict[str, Any]:
            source, target = path / f"{i}.sources", path / f"{i}.json"
            source.write_bytes(pickle.dumps(sources[i :: len(parts)]))
            _run("binaries", {}, str(source), str(target))
            return json.loads(target.read_text(encoding="utf-8"))

        binaries: dict[str, Any] = {}
        if with_binaries:
            for found in pool.map(compile_some, range(len(parts))):
                binaries |= found
    for call in calls:
        for x in call["launches"]:
            binary = binaries.get(identity(x.pop("source")))
            if binary is not None:
                x["binary"] = binary
    return calls


def _run(module: str, variables: dict[str, str], *arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTGLOW_BACKEND")}
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def committed() -> list[dict[str, Any]]:
    return json.loads(PREDICTED.read_text(encoding="utf-8")) if PREDICTED.exists() else []


def compare(calls: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]] | None = None) -> list[str]:
    """What differs from the committed file, of the calls that are given."""
    before = committed() if before is None else before
    old, found = {call["name"]: call for call in before}, []
    for call in calls:
        was = old.get(call["name"])
        if was is None:
            found.append(f"{call['name']}: not in {PREDICTED.name}")
            continue
        new_totals, old_totals = _totals(call), _totals(was)
        for kernel in sorted(new_totals.keys() | old_totals.keys()):
            now, then = new_totals.get(kernel, {}), old_totals.get(kernel, {})
            for name in sorted(now.keys() | then.keys()):
                a, b = then.get(name, 0), now.get(name, 0)
                exact = name not in ("L2 bytes", "FLOPs", "scalar operations")
                if name in ("registers", "shared bytes", "blocks a multiprocessor") and not (now and then and b):
                    continue
                if abs(a - b) > (0 if exact else TOLERANCE * max(a, b)):
                    found.append(f"{call['name']}: {kernel}: {name} {a} -> {b}")
    return found


def _totals(call: dict[str, Any]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for x in call["launches"]:
        kernel = totals.setdefault(x["kernel"], {"launches": 0})
        kernel["launches"] += x["count"]
        work, binary = x["work"], x.get("binary")
        for name, field in (("L2 bytes", "bytes"), ("FLOPs", "flops"), ("scalar operations", "scalar")):
            kernel[name] = kernel.get(name, 0) + (work[field] * x["count"] if work else 0)
        if binary:
            for name, value in (("registers", binary["registers"]), ("shared bytes", binary["shared"])):
                kernel[name] = max(kernel.get(name, 0), value)
            fewest = min(occupancy(binary), kernel.get("blocks a multiprocessor", 99))
            kernel["blocks a multiprocessor"] = fewest
    return totals


def write(calls: Sequence[dict[str, Any]]) -> None:
    """predicted.json and, between the markers, the tables of the README."""
    lines = ",\n".join(json.dumps(call) for call in calls)
    with replacing(PREDICTED) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    write_between(README, *MARKERS, tables(calls))
