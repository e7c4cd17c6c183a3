"""What a launch takes on a chip: occupancy, and the slowest of its parts."""

from dataclasses import dataclass
from typing import Any

MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Chip:
    """Measured ceilings: bytes/s of a copy, FLOP/s of a bfloat16 product; bytes of L2 cache."""

    name: str
    copy: float
    products: float
    cache: int


CHIPS = (Chip("H100", 3.0e12, 798e12, 50 * 2**20), Chip("H200", 4.3e12, 790e12, 60 * 2**20))

# Assumptions, not measured by this project.
CLOCK = 1.7e9  # Hz, under load; the data sheet's boost clock is 1.98 GHz
CACHE_RATE = 5.5e12  # bytes/s of the L2 cache, as in kernels/README.md
CACHE_RATE_OF_ONE = 64 * CLOCK  # bytes/s into one multiprocessor: 64 bytes per cycle (CUDA programming guide)
SCALAR_RATE = MULTIPROCESSORS * 128 * CLOCK  # operations/s: 128 float32 lanes per multiprocessor
NODE = 1.5e-6  # s from one launch of a CUDA graph to the next that depends on it
BARRIER = 1.0e-6  # s of a grid barrier, as estimated in kernels/README.md
CACHE_LATENCY, MEMORY_LATENCY = 0.3e-6, 0.7e-6  # s of a dependent load
SHARE_OF_PRODUCTS = {"wgmma": 1.0, "mma": 0.62, "wgmma tf32": 0.5, "mma tf32": 0.31}  # of the bfloat16 ceiling
OPERATOR_SHARE = 0.8  # of the ceilings, that PyTorch's operations reach


def occupancy(binary: dict[str, Any]) -> int:
    """Blocks on a multiprocessor of compute capability 9.0: by registers, shared memory, threads."""
    registers = -(-binary["registers"] * 32 // 256) * 256 * binary["warps"]
    limits = (65536 // registers, 228 * 1024 // (binary["shared"] + 1024), 64 // binary["warps"], 32)
    return min(limits)


def launch_times(chip: Chip, work: dict[str, Any], binary: dict[str, Any], missing: float) -> dict[str, float]:
    """Seconds by part; the slowest bounds the launch.

    Args:
        missing: the share of the distinct bytes that is not in the L2 cache.
    """
    programs = -(-work["programs"] // MULTIPROCESSORS)  # of the busiest multiprocessor
    waves = -(-work["programs"] // (MULTIPROCESSORS * occupancy(binary)))
    most_bytes, most_flops, most_scalar = (programs * x for x in work["largest"])
    latency = MEMORY_LATENCY if missing else CACHE_LATENCY
    rounds = 2 + -(-work["accesses"] // (4 * binary["stages"]))
    share = SHARE_OF_PRODUCTS.get(binary["product"])
    scalar, scalar_of_one = work["scalar"], most_scalar
    products = 0.0
    if share is None:
        scalar, scalar_of_one = scalar + work["flops"] // 2, scalar_of_one + most_flops // 2
    else:
        products = max(work["flops"], MULTIPROCESSORS * most_flops) / (share * chip.products)
    return {
        "memory": missing * work["unique"] / chip.copy,
        "L2": max(work["bytes"] / CACHE_RATE, most_bytes / CACHE_RATE_OF_ONE),
        "tensor cores": products,
        "scalar": max(scalar, MULTIPROCESSORS * scalar_of_one) / SCALAR_RATE,
        "latency": waves * rounds * latency,
    }


def operator_seconds(chip: Chip, operators: dict[str, int]) -> float:
    """Of PyTorch's operations: each is a launch."""
    moving = operators["bytes"] / chip.copy
    return operators["count"] * NODE + max(moving, operators["flops"] / chip.products) / OPERATOR_SHARE


@dataclass(frozen=True)
class Prediction:
    """Seconds of a whole call, and of each launch: (seconds of one, bound)."""

    seconds: float
    launches: list[tuple[float, str]]
    operators: float


def predict(chip: Chip, call: dict[str, Any]) -> Prediction:
    loops = call["op"] in ("decode_loop", "teacher_forced_loop")
    launches = [x for x in call["launches"] if x["work"]]
    frames = max((x["count"] for x in launches), default=1) if call["op"] == "teacher_forced_loop" else 1
    persistent = call["name"].startswith("decode_loop persistent")
    seconds, times = 0.0, []
    for x in launches:
        missing = 1.0
        if loops and x["count"] >= frames:
            # Every frame touches the same data, apart from what it adds: the cache keeps what fits.
            direction = "_bwd_" in x["kernel"]
            touched = sum(y["work"]["unique"] for y in launches if ("_bwd_" in y["kernel"]) == direction)
            missing = max(0.0, 1.0 - chip.cache / touched)
        parts = launch_times(chip, x["work"], x["binary"], missing)
        bound = max(parts, key=lambda name: parts[name])
        one = parts[bound] + (BARRIER if persistent else NODE)
        times.append((one, bound if parts[bound] > NODE else "launch"))
        seconds += one * x["count"]
    operators = 0.0 if persistent else operator_seconds(chip, call["operators"])
    return Prediction(call["repeats"] * (seconds + operators), times, operators)
