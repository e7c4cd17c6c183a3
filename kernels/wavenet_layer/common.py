"""What the kernels of `wavenet_layer` share: struct arguments, device functions and launch options.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import dot_size, item_length
from ..launch import Config, pick_config, product_precision

OP = "wavenet_layer"

PROGRAMS = 128
"""Fewest programs that fill a GPU: about the multiprocessors of an H100."""


def config(bt: int, bn: int, bk: int, num_warps: int, num_stages: int) -> Config:
    """Tiles of [BT, BN] with depth BK."""
    return {"BT": bt, "BN": bn, "BK": bk, "num_warps": num_warps, "num_stages": num_stages}


class LayerInputs(NamedTuple):
    """Inputs of the autograd function, channels-last; or their gradients, or whether they need one. None: absent."""

    h: Any  # [B, T, C]
    conditioning: Any  # [B, T, D]
    added: Any  # [B or 1, T or 1, 2C]: conditioning that is not projected
    skip: Any  # [B, T, S]
    mask: Any  # [B, T, 1]
    lengths: Any  # [B] integers
    in_weight: Any  # [2C, C, taps]
    in_bias: Any  # [2C]
    cond_weight: Any  # [2C, D, 1]
    cond_bias: Any  # [2C]
    res_skip_weight: Any  # [R + S, C, 1], R being C or 0
    res_skip_bias: Any  # [R + S]


class ChannelsLast(NamedTuple):
    """[B, T, n] with contiguous channels."""

    p: Any
    s_b: Any
    s_t: Any

    @classmethod
    def of(cls, x: Tensor | None) -> "ChannelsLast | None":
        return None if x is None else cls(x, x.stride(0), x.stride(1))


class Weight(NamedTuple):
    """[n_out, n_in, taps] with contiguous input channels."""

    p: Any
    s_out: Any
    s_tap: Any

    @classmethod
    def of(cls, x: Tensor | None) -> "Weight | None":
        return None if x is None else cls(x, x.stride(0), x.stride(2))


class ResSkip(NamedTuple):
    """The second GEMM."""

    weight: Any  # Weight [R + S, C, 1]
    bias: Any  # [R + S], or None
    R: Any  # residual rows: C, or 0 in a last layer
    S: Any  # skip rows

    @classmethod
    def of(cls, inputs: LayerInputs) -> "ResSkip":
        C, n_rows = inputs.h.shape[2], inputs.res_skip_weight.shape[0]
        R = C if n_rows > C else 0
        return cls(Weight.of(inputs.res_skip_weight), inputs.res_skip_bias, R, n_rows - R)


class Sizes(NamedTuple):
    T: Any
    C: Any
    D: Any  # channels of the conditioning
    dilation: Any


class Blocks(NamedTuple):
    BT: Any  # tile sizes, see `config`
    BN: Any
    BK: Any
    BS: Any  # skip rows per block of the second of two kernels
    BC: Any  # C padded: channels of the gate in the fused kernel
    TAPS: Any
    EVEN_C: Any  # BK divides C
    EVEN_2C: Any
    EVEN_D: Any
    EVEN_S: Any
    PRECISION: Any  # of the products


class Rows(NamedTuple):
    """The positions of a program: BT of one item."""

    i_b: Any  # int64
    t0: Any  # int64, the first position
    o_r: Any  # [BT], counted from t0
    o_t: Any  # [BT], counted from 0
    length: Any
    has_any: Any  # t0 is inside the length
    m_t: Any  # [BT], inside the length
    m_inside: Any  # [BT], inside T


# Tensors that may have a stride of 1 are arguments of their own: in a loop, Triton 3.6 forgets constants, which strides
# of 1 are, inside a struct of a struct.

# Offsets inside a tile are 32 bits wide and the same in every iteration. Only the offset of a tile's first row may
# exceed 2^31: it is a 64-bit scalar added to the pointer.


@triton.jit
def tile_of(n_blocks):
    """(block of T, block of columns) of a program. Side by side, those of one block of T share it in L2."""
    i_t = tl.program_id(0) // n_blocks
    return i_t, tl.program_id(0) - i_t * n_blocks


@triton.jit
def rows_of(i_t, i_b, p_lengths, sizes, blocks):
    """Block i_t of the positions of item i_b; p_lengths: [B] integers, or None."""
    length = item_length(p_lengths, i_b, sizes.T, p_lengths is not None)
    start = i_t * blocks.BT
    o_r = tl.arange(0, blocks.BT)
    o_t = start + o_r
    t0 = i_t.to(tl.int64) * blocks.BT
    return Rows(i_b.to(tl.int64), t0, o_r, o_t, length, start < length, o_t < length, o_t < sizes.T)


@triton.jit
def next_block(tap, k, K, BK):
    """(tap, k) of the block of a convolution's products that follows the one at (tap, k); a tap has depth K."""
    k += BK
    ended = k >= K
    return tap + ended.to(tl.int32), tl.where(ended, 0, k)


@triton.jit
def first_row(x, rows):
    """Address of a signal's position t0."""
    return x.p + rows.i_b * x.s_b + rows.t0 * x.s_t


@triton.jit
def signal_pointers(x, rows, o_n):
    """[BT, channels] of a Signal, which has any strides."""
    return first_row(x, rows) + (rows.o_r.to(tl.int64) * x.s_t)[:, None] + (o_n.to(tl.int64) * x.s_c)[None, :]


@triton.jit
def load_tile(p_tile, o_row, m_row, s_row, o_col, n_col, EVEN: tl.constexpr):
    """[rows, columns] of a matrix with contiguous columns; zeros outside. EVEN: no column is outside."""
    p_elements = p_tile + (o_row[:, None] * s_row + o_col[None, :])
    if EVEN:
        return tl.load(p_elements, mask=m_row[:, None], other=0.0)
    return tl.load(p_elements, mask=m_row[:, None] & (o_col < n_col)[None, :], other=0.0)


@triton.jit
def store_tile(p, b_x, rows, o_n, n, n_channels, T):
    """Channels o_n < n at p, a contiguous [B, T, n_channels]."""
    p_tile = p + (rows.i_b * T + rows.t0) * n_channels
    p_elements = p_tile + (rows.o_r[:, None] * n_channels + o_n[None, :])
    tl.store(p_elements, b_x.to(p.dtype.element_ty), mask=rows.m_inside[:, None] & (o_n < n)[None, :])


@triton.jit
def multiply_mask(b_x, mask, rows):
    """[BT, channels] times the mask [BT]."""
    p_rows = first_row(mask, rows) + rows.o_r * mask.s_t
    return b_x * tl.load(p_rows, mask=rows.m_t, other=0.0).to(b_x.dtype)[:, None]


@triton.jit
def halves(b_x):
    """Columns [:BN / 2] and [BN / 2:] of [BT, BN]: an epilogue with all values of a wide tile would spill registers."""
    BH: tl.constexpr = b_x.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(b_x, (b_x.shape[0], 2, BH)), (0, 2, 1)))


def tile_elements(config: Config, accumulators: int = 1) -> int:
    """Elements that a kernel's pipeline of [BT, BK] and [BN, BK] tiles keeps in shared memory."""
    return config["num_stages"] * (config["BT"] + accumulators * config["BN"]) * config["BK"]


def pick(
    kernel: str, configs: tuple[Config, ...], x: Tensor, columns: int, elements: Callable[[Config], int] = tile_elements
) -> Config:
    """The configuration for a signal [B, T, C]: the first that fits the GPU and fills it, else the last.

    Args:
        kernel: as for `pick_config`.
        configs: from the largest tiles to the smallest.
        x: the signal.
        columns: of the product, BN per block.
        elements: in shared memory, with a configuration.
    """
    B, T, C = x.shape
    limit = _shared_memory(x.device) // x.dtype.itemsize

    def fits_and_fills(config: Config) -> bool:
        programs = B * triton.cdiv(T, config["BT"]) * triton.cdiv(columns, config["BN"])
        return elements(config) <= limit and programs >= PROGRAMS

    def first(dtype: torch.dtype, rows: int, channels: int) -> Config:
        return next(filter(fits_and_fills, configs), configs[-1])

    return pick_config(kernel, configs, first, x, rows=B * T, channels=C)


def architecture(device: torch.device) -> int:
    """Of the GPU, as in sm_90; of the one that is compiled for with meta tensors; an H100's in the interpreter."""
    if device.type == "cuda":
        return 10 * torch.cuda.get_device_capability(device)[0]
    return triton.runtime.driver.active.get_current_target().arch if device.type == "meta" else 90


@cache
def _shared_memory(device: torch.device) -> int:
    """Bytes that a block may have; without a GPU, those of the first one with bfloat16."""
    if device.type != "cuda":
        return 163 * 1024
    index = torch.cuda.current_device() if device.index is None else device.index
    return triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]


def skip_tile(BN: int, S: int) -> int:
    """BS: with `end` folded into the skips, S is far smaller than BN."""
    return min(BN, dot_size(S))


@cache
def _blocks(tile: tuple[int, int, int], C: int, D: int, S: int, TAPS: int, PRECISION: str, fused: bool) -> Blocks:
    BT, BN, BK = tile
    even = {f"EVEN_{name}": size % BK == 0 for name, size in (("C", C), ("2C", 2 * C), ("D", D), ("S", S))}
    BC = dot_size(C) if fused else 0  # not read: other values would compile a kernel again
    blocks = Blocks(BT=BT, BN=BN, BK=BK, BS=skip_tile(BN, S), BC=BC, TAPS=TAPS, PRECISION=PRECISION, **even)
    return Blocks(*map(tl.constexpr, blocks))


def launch_options(config: Config, sizes: Sizes, S: int, in_weight: Tensor, fused: bool = False) -> dict[str, Any]:
    """The kernels' `sizes` and `blocks`, with the device, num_warps and num_stages."""
    tile = config["BT"], config["BN"], config["BK"]
    precision = product_precision(in_weight.dtype, convolution=True)
    return {
        "sizes": sizes,
        "blocks": _blocks(tile, sizes.C, sizes.D, S, in_weight.shape[2], precision, fused),
        "device": in_weight.device,
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }
