"""What the kernels of a frame share: sizes, the address table, dropout masks, the clock.

Maths, layout and cost: kernels/README.md.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import dot_size
from ..launch import Config, pick_config, product_precision
from ..philox import uniform_noise
from ..reference.philox import dropped_words
from ..reference.teacher_forced_loop import ATTENTION_STREAM, DECODER_STREAM, dropout_scale

OP = "teacher_forced_loop"
PROGRAMS = 128  # enough to fill a GPU
SOFTMAX_BLOCK = 256  # positions of a sum over all


def tile_config(num_warps: int, num_stages: int, **blocks: int) -> Config:
    return {**blocks, "num_warps": num_warps, "num_stages": num_stages}


class Slot(NamedTuple):
    """Where a kernel finds a tensor; compile-time constants."""

    index: Any  # in the launch's row of the address table
    dtype: Any  # of the elements
    ALIGNED: Any  # the address is a multiple of 16


class Dropout(NamedTuple):
    """Dropout of an LSTM's hidden state."""

    stream: Any  # fourth word of the Philox counter
    threshold: Any  # units whose noise is below it are dropped
    scale: Any  # of the other units


@triton.jit
def _pointer_at(p_address, slot):
    p = tl.load(p_address).to(tl.pointer_type(slot.dtype))
    if slot.ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def pointer(p_addresses, slot):
    """The tensor's pointer, from the address table."""
    return _pointer_at(p_addresses + slot.index, slot)


@triton.jit
def pointer_to_either(p_addresses, is_first, first, second):
    """`pointer` of the first or the second slot, which have the same dtype."""
    return _pointer_at(p_addresses + tl.where(is_first, first.index, second.index), first)


@triton.jit
def sum_of_parts(p_parts, o_row, o_column, m, s_part, s_row, SPLITS: tl.constexpr):
    """A tile of a product of which other programs wrote SPLITS partial sums; always in the same order."""
    p_tile = p_parts + o_row * s_row + o_column
    b_sum = tl.load(p_tile, mask=m, other=0.0)
    for _ in tl.static_range(SPLITS - 1):
        p_tile += s_part
        b_sum += tl.load(p_tile, mask=m, other=0.0)
    return b_sum


@triton.jit
def dropout_factor(p_addresses, seed, dropout, t, o_b, o_u):
    """0 or `dropout.scale` for items o_b and units o_u, which broadcast against each other; `seed` is a slot."""
    b_seed = tl.load(pointer(p_addresses, seed))
    row = (o_b << 32) + t  # the counter's upper and lower row word
    b_noise = uniform_noise(b_seed, dropout.stream, row, o_u)
    return tl.where(b_noise >= dropout.threshold, dropout.scale, 0.0)


@triton.jit
def teacher_forced_advance_kernel(p_clock, n_frames):
    """Grid (1,). p_clock: [3] int64, see `replay.new_clock`."""
    tl.store(p_clock, tl.load(p_clock) + n_frames)


class Plan(NamedTuple):
    """Sizes and dropout of a call; n_a and n_d are the units of the attention and the decoder LSTM."""

    T: int
    B: int
    P: int
    T_in: int
    D: int
    A: int
    n_a: int
    n_d: int
    taps: int
    p_attention_dropout: float
    p_decoder_dropout: float

    def attention_dropout(self) -> Dropout | None:
        return _dropout(self.p_attention_dropout, ATTENTION_STREAM)

    def decoder_dropout(self) -> Dropout | None:
        return _dropout(self.p_decoder_dropout, DECODER_STREAM)

    def attention_blocks(self, location: Tensor) -> dict[str, Any]:
        """Constants of the attention kernels of both directions."""
        return {
            "TAPS": self.taps,
            "BA": dot_size(self.A),
            "S_LOCATION": location.shape[1],
            "PRECISION": product_precision(location.dtype),
        }


def _dropout(p: float, stream: int) -> Dropout | None:
    return Dropout(stream, dropped_words(p) / 2**24, dropout_scale(p)) if p > 0 else None


def pick(
    kernel: str,
    configs: tuple[Config, ...],
    x: Tensor,
    grid: Callable[[Config], tuple[int, ...]],
    batch: int,
    units: int,
    programs: int = PROGRAMS,
) -> Config:
    """The measured configuration, else the first, so the one with the largest tiles, that gives enough programs.

    Args:
        grid: the grid with a configuration. Tiles of more items than the batch has are left out.
        programs: how many are enough.
    """

    def largest_that_fills(dtype: torch.dtype, batch: int, units: int) -> Config:
        fitting = [c for c in configs if c.get("BB", 0) <= dot_size(batch)]
        return next((c for c in fitting if math.prod(grid(c)) >= programs), configs[-1])

    return pick_config(kernel, configs, largest_that_fills, x, batch=batch, units=units)


def parts_of(K: int, BK: int, tiles: int, most: int, smallest: int) -> tuple[int, int]:
    """(splits of a product along its depth K, depth of a split), as many splits as PROGRAMS programs need.

    Args:
        BK: the depth of a split is a multiple of it.
        tiles: programs without splits.
        most: splits.
        smallest: depth of a split.
    """
    wanted = min(triton.cdiv(PROGRAMS, tiles), most, K // smallest)
    depth = triton.cdiv(triton.cdiv(K, BK), max(1, wanted)) * BK
    return triton.cdiv(K, depth), depth
