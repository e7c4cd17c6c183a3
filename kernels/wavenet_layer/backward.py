"""Backward kernels of `wavenet_layer` and the gradients of its inputs. Maths, layout and cost: kernels/README.md."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .common import (
    OP,
    ChannelsLast,
    LayerInputs,
    ResSkip,
    Sizes,
    Weight,
    architecture,
    config,
    first_row,
    halves,
    launch_options,
    load_tile,
    multiply_mask,
    next_block,
    pick,
    rows_of,
    store_tile,
    tile_of,
)

GATE_BACKWARD_CONFIGS = {  # registers hold the accumulator, tanh and sigmoid
    2: (config(128, 64, 64, 8, 3), config(64, 64, 64, 4, 3), config(32, 32, 32, 4, 2)),
    4: (config(64, 64, 32, 8, 3), config(32, 32, 32, 4, 2)),
}
INPUT_BACKWARD_CONFIGS = {
    2: (config(128, 128, 64, 8, 3), config(64, 64, 64, 4, 3), config(32, 32, 32, 4, 2)),
    4: (config(128, 64, 32, 8, 3), config(64, 64, 32, 4, 3), config(32, 32, 32, 4, 2)),
}
# Before those for 2 bytes, by architecture.
WIDE_GATE_BACKWARDS = dict.fromkeys((90, 100), (config(128, 128, 64, 8, 3),))
WIDE_INPUT_BACKWARDS = {90: (config(128, 256, 64, 8, 3),)}


@triton.jit
def _store_gate_gradients(b_da, p_gate, p_du, p_acts, rows, o_n, sizes):
    """du and a at channels o_n from da [BT, channels] float32."""
    T, C = sizes.T, sizes.C
    p_block = p_gate + (rows.i_b * T + rows.t0) * (2 * C)
    b_tanh = load_tile(p_block, rows.o_r, rows.m_t, 2 * C, o_n, C, False).to(tl.float32)
    b_sigmoid = load_tile(p_block + C, rows.o_r, rows.m_t, 2 * C, o_n, C, False).to(tl.float32)
    store_tile(p_acts, b_tanh * b_sigmoid, rows, o_n, C, C, T)
    store_tile(p_du, b_da * b_sigmoid * (1.0 - b_tanh * b_tanh), rows, o_n, C, 2 * C, T)
    store_tile(p_du + C, b_da * b_tanh * b_sigmoid * (1.0 - b_sigmoid), rows, o_n, C, 2 * C, T)


@triton.jit
def wavenet_gate_bwd_kernel(
    dnext,  # ChannelsLast [B, T, C] or None
    dskip,  # ChannelsLast [B, T, S] or None
    res_skip,
    mask,  # ChannelsLast [B, T, 1], or None
    p_gate,  # [B, T, 2C]: tanh and sigmoid
    p_lengths,
    p_du,  # [B, T, 2C]
    p_acts,  # [B, T, C]
    sizes,
    blocks,
):
    """Grid (blocks of T times blocks of C, B)."""
    BN: tl.constexpr = blocks.BN
    BK: tl.constexpr = blocks.BK
    C, R, S = sizes.C, res_skip.R, res_skip.S
    weight = res_skip.weight
    i_t, i_n = tile_of(tl.cdiv(C, BN))
    rows = rows_of(i_t, tl.program_id(1), p_lengths, sizes, blocks)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    b_da = tl.zeros((blocks.BT, BN), tl.float32)
    if rows.has_any:
        if dnext is not None:
            p_block = first_row(dnext, rows)
            for r in range(0, R, BK):
                b_d = load_tile(p_block + r, rows.o_r, rows.m_t, dnext.s_t, o_k, R - r, blocks.EVEN_C)  # [BT, BK]
                if mask is not None:
                    b_d = multiply_mask(b_d, mask, rows)
                p_w = weight.p + r * weight.s_out
                b_w = load_tile(p_w, o_k, o_k < R - r, weight.s_out, o_n, C, False)  # [BK, BN]
                b_da = tl.dot(b_d, b_w, b_da, input_precision=blocks.PRECISION)
        if dskip is not None:
            p_block = first_row(dskip, rows)
            for s in range(0, S, BK):
                b_d = load_tile(p_block + s, rows.o_r, rows.m_t, dskip.s_t, o_k, S - s, blocks.EVEN_S)
                p_w = weight.p + (R + s) * weight.s_out
                b_w = load_tile(p_w, o_k, o_k < S - s, weight.s_out, o_n, C, False)
                b_da = tl.dot(b_d, b_w, b_da, input_precision=blocks.PRECISION)
    if BN > 64:
        b_low, b_high = halves(b_da)
        o_low = i_n * BN + tl.arange(0, BN // 2)
        _store_gate_gradients(b_low, p_gate, p_du, p_acts, rows, o_low, sizes)
        _store_gate_gradients(b_high, p_gate, p_du, p_acts, rows, o_low + BN // 2, sizes)
    else:
        _store_gate_gradients(b_da, p_gate, p_du, p_acts, rows, o_n, sizes)


@triton.jit
def wavenet_input_bwd_kernel(
    p_du,  # [B, T, 2C]
    in_weight,
    dnext,  # ChannelsLast [B, T, C] or None
    mask,
    p_lengths,
    p_dh,  # [B, T, C]
    sizes,
    blocks,
):
    """Grid (blocks of T times blocks of C, B)."""
    BN: tl.constexpr = blocks.BN
    BK: tl.constexpr = blocks.BK
    T, C = sizes.T, sizes.C
    i_t, i_n = tile_of(tl.cdiv(C, BN))
    rows = rows_of(i_t, tl.program_id(1), p_lengths, sizes, blocks)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    b_dh = tl.zeros((blocks.BT, BN), tl.float32)
    if rows.has_any:
        p_block = p_du + (rows.i_b * T + rows.t0) * (2 * C)
        tap = tl.full((), 0, tl.int32)
        u = tl.full((), 0, tl.int32)
        for _ in range(0, tl.cdiv(2 * C, BK) * blocks.TAPS):
            shift = (blocks.TAPS // 2 - tap) * sizes.dilation
            o_source = rows.o_t + shift
            m_source = (o_source >= 0) & (o_source < rows.length)
            p_source = p_block + shift.to(tl.int64) * (2 * C) + u
            b_du = load_tile(p_source, rows.o_r, m_source, 2 * C, o_k, 2 * C - u, blocks.EVEN_2C)  # [BT, BK]
            p_tap = in_weight.p + tap * in_weight.s_tap + u * in_weight.s_out
            b_w = load_tile(p_tap, o_k, o_k < 2 * C - u, in_weight.s_out, o_n, C, False)  # [BK, BN]
            b_dh = tl.dot(b_du, b_w, b_dh, input_precision=blocks.PRECISION)
            tap, u = next_block(tap, u, 2 * C, BK)
    if dnext is not None:
        b_d = load_tile(first_row(dnext, rows), rows.o_r, rows.m_t, dnext.s_t, o_n, C, False).to(tl.float32)
        if mask is not None:
            b_d = multiply_mask(b_d, mask, rows)
        b_dh += b_d
    store_tile(p_dh, tl.where(rows.m_t[:, None], b_dh, 0.0), rows, o_n, C, C, T)


SignalGradients = tuple[Tensor | None, Tensor, Tensor]
"""(dh [B, T, C] if needed, du [B, T, 2C], acts [B, T, C])."""


def signal_gradients(
    dnext: Tensor | None, dskip: Tensor | None, inputs: LayerInputs, gate: Tensor, dilation: int, needs_h: bool
) -> SignalGradients:
    lengths, in_weight = inputs.lengths, inputs.in_weight
    B, T, C = inputs.h.shape
    empty = partial(torch.empty, dtype=gate.dtype, device=gate.device)
    du, acts = empty((B, T, 2 * C)), empty((B, T, C))
    dh = empty((B, T, C)) if needs_h else None
    if gate.numel() == 0:
        return dh, du, acts
    res_skip, d, mask = ResSkip.of(inputs), ChannelsLast.of(dnext), ChannelsLast.of(inputs.mask)
    options = partial(launch_options, S=res_skip.S, in_weight=in_weight)
    width = gate.dtype.itemsize
    arch = architecture(gate.device)
    configs = (WIDE_GATE_BACKWARDS.get(arch, ()) if width == 2 else ()) + GATE_BACKWARD_CONFIGS[width]
    chosen = pick("wavenet_gate_bwd", configs, acts, columns=C)
    launch(
        OP, wavenet_gate_bwd_kernel, (triton.cdiv(T, chosen["BT"]) * triton.cdiv(C, chosen["BN"]), B),
        d, ChannelsLast.of(dskip), res_skip, mask, gate, lengths, du, acts,
        **options(chosen, sizes=Sizes(T, C, D=0, dilation=0)),  # not read: other values would compile it again
    )  # fmt: skip
    if dh is not None:
        configs = (WIDE_INPUT_BACKWARDS.get(arch, ()) if width == 2 else ()) + INPUT_BACKWARD_CONFIGS[width]
        chosen = pick("wavenet_input_bwd", configs, acts, columns=C)
        launch(
            OP, wavenet_input_bwd_kernel, (triton.cdiv(T, chosen["BT"]) * triton.cdiv(C, chosen["BN"]), B),
            du, Weight.of(in_weight), d, mask, lengths, dh,
            **options(chosen, sizes=Sizes(T, C, D=0, dilation=dilation)),
        )  # fmt: skip
    return dh, du, acts


def _weight_gradient(d: Tensor, x: Tensor) -> Tensor:
    """[out, in] from [B, n, out] and [B, n, in]."""
    # One product per item, then their sum: the few tiles of a single [out, in] product would not fill the GPU.
    products = torch.bmm(d.transpose(1, 2), x)
    return products[0] if len(products) == 1 else products.sum(0)


def _tap_gradients(du: Tensor, h: Tensor, taps: int, dilation: int) -> Tensor:
    """[2C, C, taps] with contiguous input channels, from du [B, T, 2C] and h [B, T, C]."""
    T = h.shape[1]
    gradient = torch.zeros((du.shape[2], taps, h.shape[2]), dtype=h.dtype, device=h.device)
    for tap in range(taps):
        shift = (tap - taps // 2) * dilation
        first, last = max(0, -shift), min(T, T - shift)  # positions whose source is inside
        if first < last:
            gradient[:, tap] = _weight_gradient(du[:, first:last], h[:, first + shift : last + shift])
    return gradient.transpose(1, 2)


def inside(x: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, T, n] with zeros beyond each length."""
    if lengths is None:
        return x
    beyond = torch.arange(x.shape[1], device=x.device) >= lengths.view(-1, 1)
    return x.masked_fill(beyond.unsqueeze(2), 0.0)


def argument_gradients(
    find: Callable[..., SignalGradients],
    dnext: Tensor | None,
    dskip: Tensor | None,
    inputs: LayerInputs,
    gate: Tensor,
    dilation: int,
    added_shape: Sequence[int] | None,
    needs: LayerInputs,
) -> LayerInputs:
    """Gradients of the inputs but `skip`, whose gradient is dskip; None where `needs` is False.

    Args:
        find: `signal_gradients`, or the same by PyTorch.
        dnext, dskip: gradients of the next h [B, T, C] and skip [B, T, S], or None; dskip is 0 beyond each length.
        inputs: of the forward pass; biases, `added` and `skip` are not read.
        gate: tanh and sigmoid [B, T, 2C] of the forward pass.
    """
    h, lengths = inputs.h, inputs.lengths
    gradients: dict[str, Tensor | None] = {}
    if dskip is not None:
        # The skip sum may have another dtype than h; an expanded gradient has strides of 0.
        dskip = dskip.to(gate.dtype).contiguous()
    dnext = None if dnext is None else dnext.contiguous()
    gradients["h"], du, acts = find(dnext, dskip, inputs, gate, dilation, needs.h)
    if needs.conditioning:
        gradients["conditioning"] = du @ inputs.cond_weight[:, :, 0]
    if added_shape is not None and needs.added:
        broadcast = [dim for dim in (0, 1) if added_shape[dim] == 1 < du.shape[dim]]
        gradients["added"] = du.sum(broadcast, keepdim=True) if broadcast else du
    if needs.in_weight:
        taps = inputs.in_weight.shape[2]
        gradients["in_weight"] = _tap_gradients(du, inside(h, lengths), taps, dilation)
    if needs.cond_weight:
        gradients["cond_weight"] = _weight_gradient(du, inside(inputs.conditioning, lengths)).unsqueeze(2)
    if needs.in_bias or needs.cond_bias:
        gradients["in_bias"] = gradients["cond_bias"] = du.sum((0, 1))
    if needs.res_skip_weight or needs.res_skip_bias:
        R, S = ResSkip.of(inputs).R, ResSkip.of(inputs).S
        parts = [h.new_zeros((*h.shape[:2], S)) if dskip is None else dskip]
        if R and dnext is None:
            parts.insert(0, h.new_zeros(h.shape))
        elif R and dnext is not None:
            parts.insert(0, inside(dnext if inputs.mask is None else dnext * inputs.mask, lengths))
        if needs.res_skip_weight:
            gradients["res_skip_weight"] = torch.cat([_weight_gradient(d, acts) for d in parts]).unsqueeze(2)
        if needs.res_skip_bias:
            gradients["res_skip_bias"] = torch.cat([d.sum((0, 1)) for d in parts])
    return LayerInputs(**{name: gradients.get(name) if getattr(needs, name) else None for name in needs._fields})
