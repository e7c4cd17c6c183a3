"""Forward kernels of `wavenet_layer` and their launches. Maths, layout and cost: kernels/README.md."""

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Signal, dot_size
from ..launch import Config, launch, pick_config
from .common import (
    OP,
    ChannelsLast,
    LayerInputs,
    ResSkip,
    Sizes,
    architecture,
    config,
    first_row,
    launch_options,
    load_tile,
    multiply_mask,
    next_block,
    pick,
    rows_of,
    signal_pointers,
    skip_tile,
    store_tile,
    tile_elements,
    tile_of,
)

FUSED_CHANNELS = 256
"""Most channels for which one kernel can do both GEMMs: the gate of more would exceed the register file."""

FUSED, TWO_KERNELS = FORMS = ({"FUSED": 1}, {"FUSED": 0})
"""For up to FUSED_CHANNELS channels, `wavenet_layer_form` picks one of them."""

# By element size, the largest first. tests/ahead_of_time/test_compile.py proves that all fit from sm_80 on.
GATE_CONFIGS = {  # BN channels are 2 BN columns
    2: (config(128, 64, 64, 8, 3), config(64, 64, 64, 4, 3), config(32, 32, 32, 4, 2)),
    4: (config(64, 32, 32, 4, 3), config(32, 32, 32, 4, 2)),
}
RES_SKIP_CONFIGS = {
    2: (config(64, 64, 32, 4, 4), config(32, 32, 32, 4, 2)),
    4: (config(128, 64, 32, 8, 3), config(64, 64, 32, 4, 3), config(32, 32, 32, 4, 2)),
}
# For the fused kernel, by element size and whether C > 64. BN: residual or skip rows per block.
FUSED_CONFIGS = {
    (2, True): (config(32, 32, 32, 8, 2),),
    (2, False): (config(64, 32, 32, 4, 3), config(32, 32, 32, 4, 2)),
    (4, True): (config(32, 32, 16, 8, 2), config(16, 16, 16, 4, 2)),
    (4, False): (config(64, 32, 16, 8, 2), config(32, 32, 32, 4, 2)),
}
# Before those for 2 bytes, by architecture; others have sm_80's. Products of sm_90 and sm_100 read shared memory, those
# of other architectures registers too, which wider tiles would spill.
WIDE_GATES = {
    80: (config(128, 128, 32, 8, 4),),
    90: (config(128, 128, 64, 8, 3), config(256, 64, 64, 8, 3)),
    100: (config(128, 128, 64, 8, 3), config(256, 64, 64, 8, 3)),
}
WIDE_RES_SKIPS = {
    80: (config(128, 128, 32, 8, 4),),
    90: (config(128, 128, 64, 8, 3),),
    100: (config(128, 128, 64, 8, 3),),
}
# For C > 64, up to sm_90: from tensor memory, all values of a tile at once would spill registers.
WIDE_FUSED = (config(64, 64, 32, 8, 3),)


class Convolution(NamedTuple):
    """The dilated convolution."""

    p_weight: Any  # [2C, C, taps], contiguous input channels
    s_out: Any
    s_tap: Any
    p_bias: Any  # [2C], or None


class Conditioning(NamedTuple):
    """The conditioning and its projection; all None if there is none."""

    p: Any  # [B, T, D], contiguous channels
    s_b: Any
    s_t: Any
    p_weight: Any  # [2C, D], contiguous rows
    s_out: Any
    p_bias: Any  # [2C], or None

    @classmethod
    def of(cls, inputs: LayerInputs) -> "Conditioning":
        x, weight = inputs.conditioning, inputs.cond_weight
        if x is None:
            return cls(None, None, None, None, None, None)
        return cls(x, x.stride(0), x.stride(1), weight, weight.stride(0), inputs.cond_bias)


@triton.jit
def _add_bias(b_x, p_bias, o_n, n):
    """[BT, channels] plus the bias [n] at channels o_n."""
    return b_x + tl.load(p_bias + o_n, mask=o_n < n, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _gate(h, convolution, conditioning, added, rows, first_channel, BN: tl.constexpr, sizes, blocks):
    """tanh and sigmoid of BN channels from first_channel on, both [BT, BN] float32."""
    BK: tl.constexpr = blocks.BK
    BU: tl.constexpr = 2 * BN
    C, D, s_out = sizes.C, sizes.D, convolution.s_out
    o_k = tl.arange(0, BK)
    o_n = first_channel + tl.arange(0, BN)
    m_n = o_n < C
    # One product with wide instructions computes both halves. Their columns alternate, so that a channel's tanh and
    # sigmoid are in the same thread.
    o_u = tl.arange(0, BU)
    channel = first_channel + o_u // 2
    o_u = channel + (o_u % 2) * C
    m_u = channel < C
    b_u = tl.zeros((blocks.BT, BU), tl.float32)
    p_block = first_row(h, rows)
    # One loop over taps and channels keeps the pipeline of loads full from end to end.
    tap = tl.full((), 0, tl.int32)
    c = tl.full((), 0, tl.int32)
    for _ in range(0, tl.cdiv(C, BK) * blocks.TAPS):
        shift = (tap - blocks.TAPS // 2) * sizes.dilation
        o_source = rows.o_t + shift
        m_source = (o_source >= 0) & (o_source < rows.length)
        p_source = p_block + shift.to(tl.int64) * h.s_t + c
        b_h = load_tile(p_source, rows.o_r, m_source, h.s_t, o_k, C - c, blocks.EVEN_C)  # [BT, BK]
        p_tap = convolution.p_weight + tap * convolution.s_tap + c
        b_w = load_tile(p_tap, o_u, m_u, s_out, o_k, C - c, blocks.EVEN_C)  # [BU, BK]
        b_u = tl.dot(b_h, tl.trans(b_w), b_u, input_precision=blocks.PRECISION)
        tap, c = next_block(tap, c, C, BK)
    if conditioning.p is not None:
        p_block = first_row(conditioning, rows)
        for d in range(0, D, BK):
            b_c = load_tile(p_block + d, rows.o_r, rows.m_t, conditioning.s_t, o_k, D - d, blocks.EVEN_D)
            p_w = conditioning.p_weight + d
            b_w = load_tile(p_w, o_u, m_u, conditioning.s_out, o_k, D - d, blocks.EVEN_D)  # [BU, BK]
            b_u = tl.dot(b_c, tl.trans(b_w), b_u, input_precision=blocks.PRECISION)
    b_tanh, b_sigmoid = tl.split(tl.reshape(b_u, (blocks.BT, BN, 2)))
    if convolution.p_bias is not None:
        b_tanh = _add_bias(b_tanh, convolution.p_bias, o_n, C)
        b_sigmoid = _add_bias(b_sigmoid, convolution.p_bias + C, o_n, C)
    if conditioning.p_bias is not None:
        b_tanh = _add_bias(b_tanh, conditioning.p_bias, o_n, C)
        b_sigmoid = _add_bias(b_sigmoid, conditioning.p_bias + C, o_n, C)
    if added is not None:
        p_added = signal_pointers(added, rows, o_n)
        m_tile = rows.m_t[:, None] & m_n[None, :]
        b_tanh += tl.load(p_added, mask=m_tile, other=0.0).to(tl.float32)
        b_sigmoid += tl.load(p_added + C * added.s_c, mask=m_tile, other=0.0).to(tl.float32)
    # tanh in a form that does not overflow.
    return 2.0 * tl.sigmoid(2.0 * b_tanh) - 1.0, tl.sigmoid(b_sigmoid)


@triton.jit
def _store_gate(p_gate, b_tanh, b_sigmoid, rows, o_n, sizes):
    """Stores tanh and sigmoid [BT, channels] in p_gate [B, T, 2C]."""
    store_tile(p_gate, b_tanh, rows, o_n, sizes.C, 2 * sizes.C, sizes.T)
    store_tile(p_gate + sizes.C, b_sigmoid, rows, o_n, sizes.C, 2 * sizes.C, sizes.T)


@triton.jit
def _store_residual(b_x, p_next_h, p_bias, mask, h, rows, o_n, sizes):
    """(x + bias + h) mask, zeros beyond the length."""
    C = sizes.C
    if p_bias is not None:
        b_x = _add_bias(b_x, p_bias, o_n, C)
    b_x += load_tile(first_row(h, rows), rows.o_r, rows.m_t, h.s_t, o_n, C, False).to(tl.float32)
    if mask is not None:
        b_x = multiply_mask(b_x, mask, rows)
    store_tile(p_next_h, tl.where(rows.m_t[:, None], b_x, 0.0), rows, o_n, C, C, sizes.T)


@triton.jit
def _store_skip(b_x, p_next_skip, res_skip, skip, rows, o_n, sizes):
    """skip + x + bias, zeros beyond the length."""
    S = res_skip.S
    if res_skip.bias is not None:
        b_x = _add_bias(b_x, res_skip.bias + res_skip.R, o_n, S)
    if skip is not None:
        m_tile = rows.m_t[:, None] & (o_n < S)[None, :]
        b_x += tl.load(signal_pointers(skip, rows, o_n), mask=m_tile, other=0.0).to(tl.float32)
    store_tile(p_next_skip, tl.where(rows.m_t[:, None], b_x, 0.0), rows, o_n, S, S, sizes.T)


@triton.jit
def wavenet_gate_fwd_kernel(
    h,  # ChannelsLast [B, T, C]
    convolution,
    conditioning,
    added,  # Signal [B, 2C, T], or None
    p_lengths,
    p_acts,  # [B, T, C]
    p_gate,  # [B, T, 2C]: tanh and sigmoid, or None
    sizes,
    blocks,
):
    """Grid (blocks of T times blocks of C, B)."""
    BN: tl.constexpr = blocks.BN
    i_t, i_n = tile_of(tl.cdiv(sizes.C, BN))
    rows = rows_of(i_t, tl.program_id(1), p_lengths, sizes, blocks)
    o_n = i_n * BN + tl.arange(0, BN)
    b_tanh = tl.zeros((blocks.BT, BN), tl.float32)
    b_sigmoid = tl.zeros((blocks.BT, BN), tl.float32)
    if rows.has_any:
        b_tanh, b_sigmoid = _gate(h, convolution, conditioning, added, rows, i_n * BN, BN, sizes, blocks)
        b_tanh = tl.where(rows.m_t[:, None], b_tanh, 0.0)
        b_sigmoid = tl.where(rows.m_t[:, None], b_sigmoid, 0.0)
    if p_gate is not None:
        _store_gate(p_gate, b_tanh, b_sigmoid, rows, o_n, sizes)
    store_tile(p_acts, b_tanh * b_sigmoid, rows, o_n, sizes.C, sizes.C, sizes.T)


@triton.jit
def _res_skip(p_acts, res_skip, first_row_of_weight, n, rows, o_n, BN: tl.constexpr, sizes, blocks):
    """Rows o_n < n of the second GEMM, counted from first_row_of_weight, [BT, BN] float32; acts: [B, T, C]."""
    BK: tl.constexpr = blocks.BK
    C, s_out = sizes.C, res_skip.weight.s_out
    o_k = tl.arange(0, BK)
    m_n = o_n < n
    b_x = tl.zeros((blocks.BT, BN), tl.float32)
    if rows.has_any:
        p_block = p_acts + (rows.i_b * sizes.T + rows.t0) * C
        p_rows = res_skip.weight.p + first_row_of_weight * s_out
        for c in range(0, C, BK):
            b_acts = load_tile(p_block + c, rows.o_r, rows.m_t, C, o_k, C - c, blocks.EVEN_C)  # [BT, BK]
            b_w = load_tile(p_rows + c, o_n, m_n, s_out, o_k, C - c, blocks.EVEN_C)  # [BN, BK]
            b_x = tl.dot(b_acts, tl.trans(b_w), b_x, input_precision=blocks.PRECISION)
    return b_x


@triton.jit
def wavenet_res_skip_fwd_kernel(
    p_acts,  # [B, T, C]
    h,
    res_skip,
    skip,  # Signal [B, S, T], or None
    mask,  # ChannelsLast [B, T, 1], or None
    p_lengths,
    p_next_h,  # [B, T, C], or None in a last layer
    p_next_skip,  # [B, T, S]
    sizes,
    blocks,
):
    """Grid (blocks of T times blocks of residual rows, then of skip rows, B)."""
    BN: tl.constexpr = blocks.BN
    BS: tl.constexpr = blocks.BS
    R, S = res_skip.R, res_skip.S
    n_residual_blocks = tl.cdiv(R, BN)
    i_t, i_n = tile_of(n_residual_blocks + tl.cdiv(S, BS))
    rows = rows_of(i_t, tl.program_id(1), p_lengths, sizes, blocks)
    if p_next_h is not None:
        if i_n < n_residual_blocks:
            o_n = i_n * BN + tl.arange(0, BN)
            b_x = _res_skip(p_acts, res_skip, 0, R, rows, o_n, BN, sizes, blocks)
            _store_residual(b_x, p_next_h, res_skip.bias, mask, h, rows, o_n, sizes)
    if i_n >= n_residual_blocks:
        o_n = (i_n - n_residual_blocks) * BS + tl.arange(0, BS)
        b_x = _res_skip(p_acts, res_skip, R, S, rows, o_n, BS, sizes, blocks)
        _store_skip(b_x, p_next_skip, res_skip, skip, rows, o_n, sizes)


@triton.jit
def wavenet_layer_fwd_kernel(
    h, convolution, conditioning, added, res_skip, skip, mask, p_lengths, p_gate, p_next_h, p_next_skip, sizes, blocks
):
    """Both of the above for all channels of BT positions; grid (blocks of T, B)."""
    BC: tl.constexpr = blocks.BC
    BN: tl.constexpr = blocks.BN
    C, R, S, s_out = sizes.C, res_skip.R, res_skip.S, res_skip.weight.s_out
    rows = rows_of(tl.program_id(0), tl.program_id(1), p_lengths, sizes, blocks)
    o_c = tl.arange(0, BC)
    o_n = tl.arange(0, BN)
    b_tanh = tl.zeros((blocks.BT, BC), tl.float32)
    b_sigmoid = tl.zeros((blocks.BT, BC), tl.float32)
    if rows.has_any:
        b_tanh, b_sigmoid = _gate(h, convolution, conditioning, added, rows, 0, BC, sizes, blocks)
    if p_gate is not None:
        b_tanh = tl.where(rows.m_t[:, None], b_tanh, 0.0)
        b_sigmoid = tl.where(rows.m_t[:, None], b_sigmoid, 0.0)
        _store_gate(p_gate, b_tanh, b_sigmoid, rows, o_c, sizes)
    b_acts = (b_tanh * b_sigmoid).to(h.p.dtype.element_ty)  # [BT, BC]
    if p_next_h is not None:
        for r in range(0, R, BN):
            b_w = load_tile(res_skip.weight.p + r * s_out, o_n, o_n < R - r, s_out, o_c, C, False)  # [BN, BC]
            b_x = tl.dot(b_acts, tl.trans(b_w), input_precision=blocks.PRECISION)
            _store_residual(b_x, p_next_h, res_skip.bias, mask, h, rows, r + o_n, sizes)
    for s in range(0, S, BN):
        b_w = load_tile(res_skip.weight.p + (R + s) * s_out, o_n, o_n < S - s, s_out, o_c, C, False)
        b_x = tl.dot(b_acts, tl.trans(b_w), input_precision=blocks.PRECISION)
        _store_skip(b_x, p_next_skip, res_skip, skip, rows, s + o_n, sizes)


def _fused_elements(BC: int, config: Config) -> int:
    """Elements that the fused kernel keeps in shared memory: the pipeline of one of its GEMMs, and a."""
    BT, BN, BK = config["BT"], config["BN"], config["BK"]
    return config["num_stages"] * max((BT + 2 * BC) * BK, BN * BC) + BT * BC


def pick_form(h: Tensor) -> Config:
    """FUSED or TWO_KERNELS for a signal [B, T, C] of at most FUSED_CHANNELS channels."""

    def fuse_few_channels(dtype: torch.dtype, rows: int, channels: int) -> Config:
        # With more, the fused kernel's registers hold 64 positions, too few for the weights that they read.
        return FUSED if channels <= FUSED_CHANNELS // 2 else TWO_KERNELS

    return pick_config(
        "wavenet_layer_form", FORMS, fuse_few_channels, h, rows=h.shape[0] * h.shape[1], channels=h.shape[2]
    )


def layer_forward(inputs: LayerInputs, dilation: int, save_gate: bool) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(next h [B, T, C], next skip [B, T, S], tanh and sigmoid [B, T, 2C] if wanted)."""
    h, lengths = inputs.h, inputs.lengths
    B, T, C = h.shape
    res_skip = ResSkip.of(inputs)
    R, S = res_skip.R, res_skip.S
    empty = partial(torch.empty, device=h.device)
    next_h = empty((B, T, C), dtype=h.dtype) if R else None
    next_skip = empty((B, T, S), dtype=h.dtype if inputs.skip is None else inputs.skip.dtype)
    gate = empty((B, T, 2 * C), dtype=h.dtype) if save_gate else None
    if next_skip.numel() == 0:
        return next_h, next_skip, gate
    added = Signal.of(None if inputs.added is None else inputs.added.expand(B, T, 2 * C).transpose(1, 2))
    skip = Signal.of(None if inputs.skip is None else inputs.skip.transpose(1, 2))
    mask = ChannelsLast.of(inputs.mask)
    weight = inputs.in_weight
    convolution = Convolution(weight, weight.stride(0), weight.stride(2), inputs.in_bias)
    p_h = ChannelsLast.of(h)
    gate_inputs = p_h, convolution, Conditioning.of(inputs), added
    sizes = Sizes(T, C, 0 if inputs.conditioning is None else inputs.conditioning.shape[2], dilation)
    options = partial(launch_options, sizes=sizes, S=S, in_weight=weight)
    width = h.dtype.itemsize
    if C <= FUSED_CHANNELS and pick_form(h)["FUSED"]:
        wide = width == 2 and C > 64 and architecture(h.device) <= 90
        configs = (WIDE_FUSED if wide else ()) + FUSED_CONFIGS[width, C > 64]
        chosen = pick("wavenet_layer_fwd", configs, h, columns=1, elements=partial(_fused_elements, dot_size(C)))
        launch(
            OP, wavenet_layer_fwd_kernel, (triton.cdiv(T, chosen["BT"]), B),
            *gate_inputs, res_skip, skip, mask, lengths, gate, next_h, next_skip, **options(chosen, fused=True),
        )  # fmt: skip
        return next_h, next_skip, gate
    acts = empty((B, T, C), dtype=h.dtype)
    arch = architecture(h.device)
    configs = (WIDE_GATES.get(arch, WIDE_GATES[80]) if width == 2 else ()) + GATE_CONFIGS[width]
    chosen = pick("wavenet_gate_fwd", configs, h, columns=C, elements=partial(tile_elements, accumulators=2))
    launch(
        OP, wavenet_gate_fwd_kernel, (triton.cdiv(T, chosen["BT"]) * triton.cdiv(C, chosen["BN"]), B),
        *gate_inputs, lengths, acts, gate, **options(chosen),
    )  # fmt: skip
    configs = (WIDE_RES_SKIPS.get(arch, WIDE_RES_SKIPS[80]) if width == 2 else ()) + RES_SKIP_CONFIGS[width]
    chosen = pick("wavenet_res_skip_fwd", configs, h, columns=R + S)
    column_blocks = triton.cdiv(R, chosen["BN"]) + triton.cdiv(S, skip_tile(chosen["BN"], S))
    launch(
        OP, wavenet_res_skip_fwd_kernel, (triton.cdiv(T, chosen["BT"]) * column_blocks, B),
        acts, p_h, res_skip, skip, mask, lengths, next_h, next_skip,
        **options(chosen, sizes=sizes._replace(D=0, dilation=0)),  # not read: other values would compile it again
    )  # fmt: skip
    return next_h, next_skip, gate
