"""Test kernels with one fault each, which the checks of test_compile must find."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from fastglow.kernels.launch import launch, pick_config

from .reports import ARCHITECTURES, Case

UNUSED_CONFIGS = ({"BLOCK": 64, "num_warps": 2, "num_stages": 1},)
SOUND_CONFIGS = ({"BLOCK": 1024, "num_warps": 4, "num_stages": 1}, {"BLOCK": 512, "num_warps": 4, "num_stages": 1})


class ProductBlocks(NamedTuple):
    BM: Any
    BN: Any
    BK: Any
    PRECISION: Any


@triton.jit
def squares_kernel(x, y, BLOCK: tl.constexpr):
    """All elements are used again after their sum: a thread holds BLOCK / 32 / num_warps of them."""
    o = tl.arange(0, BLOCK)
    b_x = tl.load(x + o)
    tl.store(y + o, b_x * b_x - tl.sum(b_x))


@triton.jit
def product_kernel(x, y, z, n, blocks):
    BM: tl.constexpr = blocks.BM
    BN: tl.constexpr = blocks.BN
    BK: tl.constexpr = blocks.BK
    o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    b_z = tl.zeros((BM, BN), tl.float32)
    for k in range(0, n, BK):
        b_x = tl.load(x + o_m[:, None] * n + k + o_k[None, :])
        b_y = tl.load(y + (k + o_k)[:, None] * BN + o_n[None, :])
        b_z = tl.dot(b_x, b_y, b_z, input_precision=blocks.PRECISION)
    tl.store(z + o_m[:, None] * BN + o_n[None, :], b_z)


@triton.jit
def double_kernel(x, y, BLOCK: tl.constexpr):
    o = tl.arange(0, BLOCK)
    tl.store(y + o, (tl.load(x + o).to(tl.float64) * 0.1).to(tl.float32))


@triton.jit
def waiting_kernel(x, y, p_barrier, n, BLOCK: tl.constexpr, PREFETCH: tl.constexpr, FAULT: tl.constexpr):
    """Loads before it waits, and uses the values after; with a fault it loads or uses at the wrong time."""
    o = tl.arange(0, BLOCK)
    tl.debug_barrier()
    tl.atomic_add(p_barrier, 1, sem="release")
    if FAULT != "loads late":
        b_x = tl.load(x + o)
    if FAULT == "uses early":
        tl.store(y + o, b_x)
    arrived = 0
    while arrived < n:
        arrived = tl.atomic_add(p_barrier, 0, sem="acquire")
    tl.debug_barrier()
    if FAULT == "loads late":
        b_x = tl.load(x + o)
    tl.store(y + o, b_x + 1.0)


@triton.jit
def forgotten_kernel(x):
    tl.store(x, 0.0)


def _empty(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(1 << 20, dtype=dtype, device="meta")


def _squares(block: int, num_warps: int):
    def run(dtype: torch.dtype) -> None:
        x = _empty(dtype)
        launch("made_up", squares_kernel, (1,), x, x, device=x.device, BLOCK=block, num_warps=num_warps)

    return run


def _swept(dtype: torch.dtype) -> None:
    x = _empty(dtype)
    config = pick_config("squares", SOUND_CONFIGS, lambda dtype: SOUND_CONFIGS[0], x)
    launch("made_up", squares_kernel, (1,), x, x, device=x.device, **config)


def _ignores_config(dtype: torch.dtype) -> None:
    x = _empty(dtype)
    pick_config("double", SOUND_CONFIGS, lambda dtype: SOUND_CONFIGS[0], x)
    launch("made_up", double_kernel, (1,), x, x, device=x.device, BLOCK=1024, num_warps=4, num_stages=1)


def _product(precision: str, rows: int = 64, depth: int = 32, num_stages: int = 3):
    def run(dtype: torch.dtype) -> None:
        x = _empty(dtype)
        blocks = ProductBlocks(*map(tl.constexpr, (rows, 64, depth, precision)))
        launch(
            "made_up", product_kernel, (1,), x, x, _empty(torch.float32), 1024, blocks, device=x.device,
            num_warps=4, num_stages=num_stages,
        )  # fmt: skip

    return run


def _waits(fault: str):
    def run(dtype: torch.dtype) -> None:
        x, barrier = _empty(dtype), torch.empty(1, dtype=torch.int32, device="meta")
        launch(
            "made_up", waiting_kernel, (1,), x, x, barrier, 132, device=x.device,
            BLOCK=512, PREFETCH=1, FAULT=fault, num_warps=4,
        )  # fmt: skip

    return run


def _fails(dtype: torch.dtype) -> None:
    raise ArithmeticError("a kernel that cannot be compiled")


_TENSOR_CORES = {"product_kernel": "BM"}


def _case(name: str, run, *precisions: str, sweeps: bool = False, **others) -> Case:
    everywhere = dict.fromkeys(ARCHITECTURES, precisions)
    return Case(name, run, everywhere, everywhere if sweeps else {}, **others)


CASES = (
    _case("sound", _swept, "float32", sweeps=True),
    _case("sound wait", _waits("none"), "float32"),
    _case("loads late", _waits("loads late"), "float32"),
    _case("uses early", _waits("uses early"), "float32"),
    _case("too many registers", _squares(16384, 1), "float32"),
    _case("sound product", _product("ieee"), "float16", "bfloat16", tensor_cores=_TENSOR_CORES),
    _case("sound product", _product("tf32"), "tf32", tensor_cores=_TENSOR_CORES),
    _case("few rows", _product("ieee", rows=16), "float16", tensor_cores=_TENSOR_CORES),
    _case("too much shared memory", _product("ieee", depth=256, num_stages=4), "bfloat16", tensor_cores=_TENSOR_CORES),
    _case("no tensor cores", _product("ieee", depth=16), "tf32", tensor_cores=_TENSOR_CORES),
    _case("tensor cores unasked", _product("tf32", depth=16), "float32"),
    _case("ignores its configuration", _ignores_config, "float32", sweeps=True),
    _case("no code", _fails, "float32"),
)
