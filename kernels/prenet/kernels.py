"""Tacotron 2's prenet, two layers in one kernel, forward and backward.

Maths, layout and cost: kernels/README.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import backend
from ..arguments import (
    Matrix,
    contiguous_rows,
    strides,
    with_near_rows,
)
from ..launch import Config, launch, pick_config, product_precision, split_config
from ..operators import differentiable, operator
from ..philox import random_words, uniform_number
from ..reference.philox import uniform_noise

OP = "prenet"
LAYERS_PER_LAUNCH = 2


def _config(br: int, bn: int, bk: int, num_warps: int, num_stages: int) -> Config:
    return {"BR": br, "BN": bn, "BK": bk, "num_warps": num_warps, "num_stages": num_stages}


# By element size, the most rows first: tiles of BR rows and BN units, sums in blocks of BK. With few rows, few programs
# share the L2 cache's bandwidth for weights, so each takes more units at a time.
FORWARD_CONFIGS = {
    2: (_config(128, 64, 64, 8, 3), _config(64, 64, 64, 4, 3), _config(16, 256, 64, 8, 3)),
    4: (_config(64, 64, 32, 8, 3), _config(16, 128, 32, 8, 3)),
}
BACKWARD_CONFIGS = {
    2: (_config(128, 128, 64, 8, 3), _config(64, 128, 64, 8, 3), _config(16, 256, 64, 8, 3)),
    4: (_config(64, 64, 32, 8, 3), _config(16, 128, 32, 8, 3)),
}
PROGRAMS = 128  # about one per multiprocessor; tiles get more rows only if that many programs remain


class Layer(NamedTuple):
    p_weight: Any  # [n, n_in], contiguous rows
    s_weight: Any  # between rows
    p_h: Any  # [N, n], the output
    p_d: Any  # [N, n], the gradient of W h_below; None in the forward pass
    n: Any
    EVEN: Any  # whether the sums, over n_in and in the backward pass over n, are multiples of BK


# Kernels test a field of it: Triton 3.6 cannot compare a struct that holds a None with None.
NO_LAYER = Layer(None, None, None, None, None, None)


class Dropout(NamedTuple):
    p_noise: Any  # [layers, N, n] float32, or None
    s_layer: Any
    s_row: Any
    p_seeds: Any  # [N / steps] int64, or None
    steps: Any
    p: Any
    scale: Any  # 1 / (1 - p)


class Blocks(NamedTuple):
    BR: Any
    BN: Any
    BK: Any
    PRECISION: Any


class Rows(NamedTuple):
    """A program's block of rows."""

    first: Any  # int64
    o: Any  # [BR], offsets from the first
    m: Any  # [BR]
    b_seed: Any  # [BR], of the noise
    b_position: Any  # [BR], of the noise


@triton.jit
def _kept(b_seed, stream, b_position, o_block, p_dropout):
    """Which units are kept, [BR, 4 blocks] int8: each word of a counter decides for one unit."""
    w0, w1, w2, w3 = random_words(b_seed[:, None], stream, b_position[:, None], o_block[None, :])  # [BR, blocks] each
    b_even = tl.interleave((uniform_number(w0) >= p_dropout).to(tl.int8), (uniform_number(w2) >= p_dropout).to(tl.int8))
    b_odd = tl.interleave((uniform_number(w1) >= p_dropout).to(tl.int8), (uniform_number(w3) >= p_dropout).to(tl.int8))
    return tl.interleave(b_even, b_odd)


@triton.jit
def _layer(x, n_in, layer, i_layer, stream, rows, dropout, blocks):
    """Writes a layer's output for `x`, a Matrix [N, n_in]; `i_layer`: index in the noise, `stream`: of the seeds."""
    BR: tl.constexpr = blocks.BR
    BN: tl.constexpr = blocks.BN
    BK: tl.constexpr = blocks.BK
    p_x = x.p + rows.first * x.s_row
    p_h = layer.p_h + rows.first * layer.n
    o_k = tl.arange(0, BK)
    for first in range(0, layer.n, BN):
        o_n = first + tl.arange(0, BN)
        m_n = o_n < layer.n
        p_rows = layer.p_weight + (o_n.to(tl.int64) * layer.s_weight)[:, None] + o_k[None, :]
        p_columns = p_x + rows.o[:, None] * x.s_row + (o_k * x.s_column)[None, :]
        b_h = tl.zeros((BR, BN), tl.float32)
        for k in range(0, n_in, BK):
            if layer.EVEN:
                b_x = tl.load(p_columns + k * x.s_column, mask=rows.m[:, None], other=0.0)  # [BR, BK]
                b_w = tl.load(p_rows + k, mask=m_n[:, None], other=0.0)  # [BN, BK]
            else:
                m_k = (o_k < n_in - k)[None, :]
                b_x = tl.load(p_columns + k * x.s_column, mask=rows.m[:, None] & m_k, other=0.0)
                b_w = tl.load(p_rows + k, mask=m_n[:, None] & m_k, other=0.0)
            b_h = tl.dot(b_x, tl.trans(b_w), b_h, input_precision=blocks.PRECISION)
        b_h = tl.where(b_h < 0.0, 0.0, b_h)  # NaN stays NaN, unlike with tl.maximum
        m = rows.m[:, None] & m_n[None, :]
        if dropout.p_noise is not None:
            p_noise = dropout.p_noise + i_layer * dropout.s_layer + rows.first * dropout.s_row
            b_noise = tl.load(p_noise + rows.o[:, None] * dropout.s_row + o_n[None, :], mask=m, other=0.0)
            b_h = tl.where(b_noise >= dropout.p, b_h * dropout.scale, 0.0)
        if dropout.p_seeds is not None:
            o_block = first // 4 + tl.arange(0, BN // 4)
            b_kept = _kept(rows.b_seed, stream, rows.b_position, o_block, dropout.p)
            b_h = tl.where(b_kept != 0, b_h * dropout.scale, 0.0)
        tl.store(p_h + rows.o[:, None] * layer.n + o_n[None, :], b_h.to(p_h.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["start", "stream"])
def prenet_fwd_kernel(x, n_in, layer1, layer2, dropout, N, start, stream, blocks):
    """Outputs of one or two layers for `x`, a Matrix [N, n_in]; grid (blocks of rows,).

    Args:
        layer1, layer2: Layer; layer2 may be NO_LAYER.
        start: decoder step of the first row of an item.
        stream: of layer1's noise; layer2 has the next one.
    """
    BR: tl.constexpr = blocks.BR
    o_r = tl.arange(0, BR)
    first = tl.program_id(0).to(tl.int64) * BR
    m_r = first + o_r < N
    b_position, b_seed = first + o_r, first + o_r
    if dropout.p_seeds is not None:
        b_seed = tl.load(dropout.p_seeds + (first + o_r) // dropout.steps, mask=m_r, other=0)
        b_position = start.to(tl.int64) + (first + o_r) % dropout.steps
    rows = Rows(first, o_r, m_r, b_seed, b_position)
    _layer(x, n_in, layer1, 0, stream, rows, dropout, blocks)
    if layer2.p_h is not None:
        tl.debug_barrier()  # other threads wrote part of h1
        _layer(Matrix(layer1.p_h, layer1.n, 1), layer1.n, layer2, 1, stream + 1, rows, dropout, blocks)


@triton.jit
def _masked_gradient(b_dh, p_h, m, scale):
    """d from dh: dh scale, or 0 where the unit's output is 0; float32. p_h points at the same elements of h."""
    return tl.where(tl.load(p_h, mask=m, other=0.0) <= 0.0, 0.0, b_dh.to(tl.float32) * scale)


@triton.jit
def _input_gradient(layer, p_out, n_in, p_h_below, rows, scale, blocks):
    """Writes d W [rows, n_in], or from it the d of the layer below if its output `p_h_below` is given."""
    BR: tl.constexpr = blocks.BR
    BN: tl.constexpr = blocks.BN
    BK: tl.constexpr = blocks.BK
    p_d = layer.p_d + rows.first * layer.n
    o_k = tl.arange(0, BK)
    for first in range(0, n_in, BN):
        o_n = first + tl.arange(0, BN)
        m_n = o_n < n_in
        p_rows = layer.p_weight + (o_k.to(tl.int64) * layer.s_weight)[:, None] + o_n[None, :]
        p_columns = p_d + rows.o[:, None] * layer.n + o_k[None, :]
        b_dh = tl.zeros((BR, BN), tl.float32)
        for k in range(0, layer.n, BK):
            p_w = p_rows + tl.cast(k, tl.int64) * layer.s_weight
            if layer.EVEN:
                b_d = tl.load(p_columns + k, mask=rows.m[:, None], other=0.0)  # [BR, BK]
                b_w = tl.load(p_w, mask=m_n[None, :], other=0.0)  # [BK, BN]
            else:
                m_k = o_k < layer.n - k
                b_d = tl.load(p_columns + k, mask=rows.m[:, None] & m_k[None, :], other=0.0)
                b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_dh = tl.dot(b_d, b_w, b_dh, input_precision=blocks.PRECISION)
        m = rows.m[:, None] & m_n[None, :]
        o_tile = rows.o[:, None] * n_in + o_n[None, :]
        if p_h_below is not None:
            b_dh = _masked_gradient(b_dh, p_h_below + rows.first * n_in + o_tile, m, scale)
        tl.store(p_out + rows.first * n_in + o_tile, b_dh.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def prenet_bwd_kernel(dh, layer1, layer2, p_dx, n_in, N, scale, blocks):
    """d of layer 2 and, unless it is NO_LAYER, of layer 1; dx [N, n_in] of the lower one unless it is None.

    `dh`: a Matrix, gradient of the output of layer 2; grid (blocks of rows,).
    """
    BK: tl.constexpr = blocks.BK
    o_r = tl.arange(0, blocks.BR)
    first = tl.program_id(0).to(tl.int64) * blocks.BR
    m_r = first + o_r < N
    n = layer2.n
    for first_n in range(0, n, BK):
        o_n = first_n + tl.arange(0, BK)
        m = m_r[:, None] & (o_n < n)[None, :]
        p_dh = dh.p + first * dh.s_row + o_r[:, None] * dh.s_row + (o_n * dh.s_column)[None, :]
        o_tile = o_r[:, None] * n + o_n[None, :]
        b_d = _masked_gradient(tl.load(p_dh, mask=m, other=0.0), layer2.p_h + first * n + o_tile, m, scale)
        tl.store(layer2.p_d + first * n + o_tile, b_d.to(layer2.p_d.dtype.element_ty), mask=m)
    rows = Rows(first, o_r, m_r, o_r, o_r)  # no noise; Triton 3.3 takes no None here
    if layer1.p_h is not None:
        tl.debug_barrier()  # other threads wrote part of d2
        _input_gradient(layer2, layer1.p_d, layer1.n, layer1.p_h, rows, scale, blocks)
    if p_dx is not None:
        tl.debug_barrier()
        if layer1.p_h is not None:
            _input_gradient(layer1, p_dx, n_in, None, rows, scale, blocks)
        else:
            _input_gradient(layer2, p_dx, n_in, None, rows, scale, blocks)


def _pick(kernel: str, configs: tuple[Config, ...], x: Tensor, rows: int, units: int) -> Config:
    def most_rows_that_fill(dtype: torch.dtype, rows: int, units: int) -> Config:
        return next((c for c in configs if rows >= PROGRAMS * c["BR"]), configs[-1])

    return pick_config(kernel, configs, most_rows_that_fill, x, rows=rows, units=units)


def _forward(
    x: Tensor,
    weights: Sequence[Tensor],
    noise: Tensor | None,
    seeds: Tensor | None,
    p_dropout: float,
    start: int,
    layer: int,
) -> list[Tensor]:
    """The outputs of one or two layers, [N, n_out] each."""
    (N, n_in), x = x.shape, with_near_rows(x)
    outputs = _empty(x, weights)
    if N == 0:
        return outputs
    weights = [contiguous_rows(weight) for weight in weights]
    noise = None if noise is None else with_near_rows(noise if noise.stride(2) == 1 else noise.contiguous())
    seeds = None if seeds is None else seeds.contiguous()
    steps = N // max(1, len(seeds)) if seeds is not None else 1
    s_layer, s_row = strides(noise, 0, 1)
    dropout = Dropout(noise, s_layer, s_row, seeds, steps, p_dropout, 1.0 / (1.0 - p_dropout))
    config = _pick("prenet_fwd", FORWARD_CONFIGS[x.dtype.itemsize], x, N, len(weights[-1]))
    blocks, options = split_config(Blocks, config, PRECISION=product_precision(x.dtype))
    layers = [
        Layer(weight, weight.stride(0), h, None, len(weight), tl.constexpr(weight.shape[1] % config["BK"] == 0))
        for weight, h in zip(weights, outputs, strict=True)
    ]
    layer1, layer2 = layers if len(layers) == LAYERS_PER_LAUNCH else (layers[0], NO_LAYER)
    launch(
        OP, prenet_fwd_kernel, (triton.cdiv(N, config["BR"]),),
        Matrix.of(x), n_in, layer1, layer2, dropout, N, start, layer, blocks, device=x.device, **options,
    )  # fmt: skip
    return outputs


def _empty(x: Tensor, weights: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty((x.shape[0], len(weight)), dtype=x.dtype, device=x.device) for weight in weights]


def _reference(
    x: Tensor,
    weights: Sequence[Tensor],
    noise: Tensor | None,
    seeds: Tensor | None,
    p_dropout: float,
    start: int,
    layer: int,
) -> list[Tensor]:
    outputs: list[Tensor] = []
    for i, weight in enumerate(weights):
        x = F.relu(F.linear(x, weight))
        values = None if noise is None else noise[i]
        if seeds is not None:
            steps = len(x) // max(1, len(seeds))
            values = uniform_noise(seeds, layer + i, start, steps, len(weight)).flatten(0, 1)
        if values is not None:
            x = x * (values >= p_dropout) / (1 - p_dropout)
        outputs.append(x)
    return outputs


def _backward(
    needs_first: bool, needs_x: bool, dh: Tensor, weights: Sequence[Tensor], outputs: Sequence[Tensor], scale: float
) -> list[Tensor]:
    """[d of each layer, of the first one only if it is needed; dx [N, n_in] if needed]."""
    N, n_in = dh.shape[0], weights[0].shape[1]
    gradients = _empty_gradients(needs_first, needs_x, dh, weights, outputs, scale)
    ds, dx = (gradients[:-1], gradients[-1]) if needs_x else (gradients, None)
    if N > 0:
        dh, weights = with_near_rows(dh), [contiguous_rows(weight) for weight in weights]
        config = _pick("prenet_bwd", BACKWARD_CONFIGS[dh.dtype.itemsize], dh, N, len(weights[-1]))
        blocks, options = split_config(Blocks, config, PRECISION=product_precision(dh.dtype))
        layers = [
            Layer(weight, weight.stride(0), h, d, len(weight), tl.constexpr(len(weight) % config["BK"] == 0))
            for weight, h, d in zip(reversed(weights), reversed(outputs), reversed(ds), strict=False)
        ]
        layer2, layer1 = layers if len(layers) == LAYERS_PER_LAUNCH else (layers[0], NO_LAYER)
        launch(
            OP, prenet_bwd_kernel, (triton.cdiv(N, config["BR"]),),
            Matrix.of(dh), layer1, layer2, dx, n_in, N, scale, blocks, device=dh.device, **options,
        )  # fmt: skip
    return gradients


def _empty_gradients(
    needs_first: bool, needs_x: bool, dh: Tensor, weights: Sequence[Tensor], outputs: Sequence[Tensor], scale: float
) -> list[Tensor]:
    needed = outputs if needs_first or needs_x else outputs[-1:]
    dx = [dh.new_empty((dh.shape[0], weights[0].shape[1]))] if needs_x else []
    return [*(torch.empty_like(h) for h in needed), *dx]


def _reference_backward(
    needs_first: bool, needs_x: bool, dh: Tensor, weights: Sequence[Tensor], outputs: Sequence[Tensor], scale: float
) -> list[Tensor]:
    gradients: list[Tensor] = [dh] if needs_x else []
    for i, (weight, h) in reversed(list(enumerate(zip(weights, outputs, strict=True)))):
        d = dh * (h > 0) * scale
        dh = d @ weight
        if i or needs_first or needs_x:
            gradients.insert(0, d)
    return [*gradients[:-1], dh] if needs_x else gradients


prenet_operator = operator(
    OP,
    "(Tensor x, Tensor[] weights, Tensor? noise, Tensor? seeds, float p_dropout, SymInt start, int layer) -> Tensor[]",
    kernel=_forward,
    empty=_empty,
    reference=_reference,
)
_gradients = operator(
    f"{OP}_backward",
    "(bool needs_first, bool needs_x, Tensor dh, Tensor[] weights, Tensor[] outputs, float scale) -> Tensor[]",
    kernel=_backward,
    empty=_empty_gradients,
    reference=_reference_backward,
)


def _save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    x, weights, _, _, p_dropout, _, _ = inputs
    ctx.scale = 1.0 / (1.0 - p_dropout)
    ctx.save_for_backward(x, *weights, *output)
    ctx.mark_non_differentiable(*output[:-1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, ds_of_outputs: list[Tensor | None]) -> tuple[Any, ...]:
    needs_x, needs_weights = ctx.needs_input_grad[:2]
    dh = ds_of_outputs[-1]
    others = (None,) * 5
    if dh is None:
        return None, [None for _ in needs_weights], *others
    x, *tensors = ctx.saved_tensors
    weights, outputs = tensors[: len(needs_weights)], tensors[len(needs_weights) :]
    found = _gradients(needs_weights[0], needs_x, dh, weights, outputs, ctx.scale)
    ds, dx = (found[:-1], found[-1]) if needs_x else (found, None)
    ds = [*[None] * (len(weights) - len(ds)), *ds]
    with backend.without_autocast(x):  # forward may have been called where it was off
        gradients = zip(ds, (x, *outputs[:-1]), needs_weights, strict=True)
        dws = [d.T @ h if need and d is not None else None for d, h, need in gradients]
    return dx, dws, *others


differentiable(prenet_operator, _save, _differentiate, _gradients)
