"""What the tables of reports share."""

from collections.abc import Mapping

from .results import Row
from .workload import COMPILE, EAGER, FASTGLOW, PEER

IMPLEMENTATIONS = {FASTGLOW: "ours", EAGER: "eager", COMPILE: "compile", PEER: "peer"}
"""The columns of times."""


def ceilings_line(machine: Mapping) -> str:
    ceilings = machine["ceilings"]
    if ceilings is None:
        return "Ceilings were not measured."
    rates = ", ".join(f"{dtype} {rate / 1e12:.4g} TFLOP/s" for dtype, rate in ceilings["flops_per_second"].items())
    reads = "".join(f", reading {n / 1e6:.3g} MB {rate / 1e9:.4g} GB/s" for n, rate in ceilings.get("reads", ()))
    return f"Ceilings: copy {ceilings['bytes_per_second'] / 1e9:.4g} GB/s{reads}; matrix product {rates}."


def memory_cell(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"


def time_cell(row: Row) -> str:
    seconds = row.seconds
    text = f"{seconds * 1e3:.4g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} us"
    text = f"{seconds * 1e3:,.0f} ms" if seconds >= 1 else text
    return text + " s" * row.info["method"].startswith("stream")
