"""Counts the published calls: `python -m bench.cost_model.counted OUT [part of a call's name, ...]`.

Runs with TRITON_INTERPRET=1, in a process that has not imported the benchmarks.
"""

import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .binaries import identity
from .calls import Published, published
from .counting import Call, Recorder, counting


def count(recorder: Recorder, call: Published) -> dict[str, Any]:
    """The call as predicted.json has it, without binaries; its launches' `source` is what is compiled."""
    torch.manual_seed(0)
    run = call.prepare()
    if call.warm_up:
        run()
    with recorder.recording() as recorded:
        run()
    return {"name": call.name, "op": call.name.split()[0], "repeats": call.repeats, **call.facts, **_entry(recorded)}


def _entry(call: Call) -> dict[str, Any]:
    operators = {
        "count": len(call.operators),
        "bytes": sum(size for x in call.operators for _, size in x.tensors),
        "flops": sum(x.flops for x in call.operators),
    }
    launches: dict[str, dict[str, Any]] = {}
    for x in call.launches.values():
        work = asdict(x.work) if x.work else None
        key = repr((x.kernel, work, identity(x.source)))
        found = launches.setdefault(key, {"kernel": x.kernel, "count": 0, "work": work, "source": x.source})
        found["count"] += x.count
    return {"operators": operators, "launches": list(launches.values())}


def main(target: Path, parts: list[str]) -> None:
    torch.set_num_threads(1)
    with counting() as recorder:
        calls = [count(recorder, x) for x in published() if not parts or any(part in x.name for part in parts)]
    target.write_bytes(pickle.dumps(calls))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
