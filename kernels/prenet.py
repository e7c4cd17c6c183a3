"""Tacotron 2's prenet in one kernel for two layers, forward and backward.

With k_i the factor of dropout, 0 or 1 / (1 - p) a unit, each layer is h_i = k_i max(0, W_i h_{i-1}), h_0 = x.
Backward, from dh_i:

    d_i = dh_i / (1 - p) where h_i > 0, else 0        dh_{i-1} = d_i W_i        dW_i = d_i^T h_{i-1}

so that the masks are neither kept nor drawn again: where a unit was dropped, h_i is 0.

A program has BR rows of x and goes through both layers with them. What it hands from one to the other goes through
memory, where a backward pass wants it anyway; the program reads only its own rows, which its caches still hold.
Layers of any width take as many blocks of BN units as they need, and further layers further launches.

Numbers of the noise: `reference.philox.uniform_noise`, four units a counter. Weight gradients are plain GEMMs, which
cuBLAS does.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastglow.errors import FastglowError

from . import backend
from .launch import Config, launch, pick_config, product_precision
from .philox import random_words, uniform_number
from .reference.philox import random_seed
from .reference.prenet import prenet as reference_prenet

OP = "prenet"
LAYERS = 2  # a launch


def _config(br: int, bn: int, bk: int, num_warps: int, num_stages: int) -> Config:
    return {"BR": br, "BN": bn, "BK": bk, "num_warps": num_warps, "num_stages": num_stages}


# By the size of an element, the most rows first: BR rows, BN units and BK of the sum at a time. The fewer the rows
# the fewer the programs that share the weights' way from the L2 cache, and the more units are wanted at a time.
FORWARD_CONFIGS = {
    2: (_config(128, 64, 64, 8, 3), _config(64, 64, 64, 4, 3), _config(16, 256, 64, 8, 3)),
    4: (_config(64, 64, 32, 8, 3), _config(16, 128, 32, 8, 3)),
}
BACKWARD_CONFIGS = {
    2: (_config(128, 128, 64, 8, 3), _config(64, 128, 64, 8, 3), _config(16, 256, 64, 8, 3)),
    4: (_config(64, 64, 32, 8, 3), _config(16, 128, 32, 8, 3)),
}
PROGRAMS = 128  # about as many as there are multiprocessors: so many have work before a program gets more rows


@triton.jit
def _kept(b_seed, stream, b_position, o_block, p_dropout):
    """Which units stay, [BR, 4 blocks] int8: each of a counter's words is one unit's."""
    w0, w1, w2, w3 = random_words(b_seed[:, None], stream, b_position[:, None], o_block[None, :])  # [BR, blocks] each
    b_even = tl.interleave((uniform_number(w0) >= p_dropout).to(tl.int8), (uniform_number(w2) >= p_dropout).to(tl.int8))
    b_odd = tl.interleave((uniform_number(w1) >= p_dropout).to(tl.int8), (uniform_number(w3) >= p_dropout).to(tl.int8))
    return tl.interleave(b_even, b_odd)


@triton.jit
def _layer(
    p_in, p_weight, p_out, p_noise, b_seed, b_position, stream, o_r, m_r, K, n, p_dropout, scale,
    s_in_r, s_in_c, s_w, s_noise,
    DROPOUT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes a layer's output for rows o_r; p_in, p_out and p_noise point at the block's first row."""
    o_k = tl.arange(0, BK)
    for first in range(0, n, BN):
        o_n = first + tl.arange(0, BN)
        m_n = o_n < n
        p_rows = p_weight + (o_n.to(tl.int64) * s_w)[:, None] + o_k[None, :]
        p_columns = p_in + o_r[:, None] * s_in_r + (o_k * s_in_c)[None, :]
        b_h = tl.zeros((BR, BN), tl.float32)
        for k in range(0, K, BK):
            if EVEN:
                b_x = tl.load(p_columns + k * s_in_c, mask=m_r[:, None], other=0.0)  # [BR, BK]
                b_w = tl.load(p_rows + k, mask=m_n[:, None], other=0.0)  # [BN, BK]
            else:
                m_k = (o_k < K - k)[None, :]
                b_x = tl.load(p_columns + k * s_in_c, mask=m_r[:, None] & m_k, other=0.0)
                b_w = tl.load(p_rows + k, mask=m_n[:, None] & m_k, other=0.0)
            b_h = tl.dot(b_x, tl.trans(b_w), b_h, input_precision=PRECISION)
        b_h = tl.where(b_h < 0.0, 0.0, b_h)  # unlike a maximum it lets NaN through
        m = m_r[:, None] & m_n[None, :]
        if DROPOUT == "noise":
            b_noise = tl.load(p_noise + o_r[:, None] * s_noise + o_n[None, :], mask=m, other=0.0)
            b_h = tl.where(b_noise >= p_dropout, b_h * scale, 0.0)
        if DROPOUT == "seeds":
            b_kept = _kept(b_seed, stream, b_position, first // 4 + tl.arange(0, BN // 4), p_dropout)
            b_h = tl.where(b_kept != 0, b_h * scale, 0.0)
        tl.store(p_out + o_r[:, None] * n + o_n[None, :], b_h.to(p_out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["start", "stream"])
def prenet_fwd_kernel(
    p_x, p_weight1, p_weight2, p_h1, p_h2, p_noise, p_seeds, N, K, n1, n2, steps, start, stream, p_dropout, scale,
    s_xr, s_xc, s_w1, s_w2, s_noise_l, s_noise_r,
    HAS_SECOND: tl.constexpr, DROPOUT: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_K: tl.constexpr, EVEN_N1: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h1 [N, n1] and h2 [N, n2] of layers `stream` and `stream` + 1; grid (blocks of N)."""
    o_r = tl.arange(0, BR)
    first = tl.program_id(0).to(tl.int64) * BR
    m_r = first + o_r < N
    b_position, b_seed = first + o_r, first + o_r
    if DROPOUT == "seeds":
        b_seed = tl.load(p_seeds + (first + o_r) // steps, mask=m_r, other=0)
        b_position = start.to(tl.int64) + (first + o_r) % steps
    _layer(
        p_x + first * s_xr, p_weight1, p_h1 + first * n1, p_noise + first * s_noise_r,
        b_seed, b_position, stream, o_r, m_r, K, n1, p_dropout, scale, s_xr, s_xc, s_w1, s_noise_r,
        DROPOUT, BR, BN, BK, EVEN_K, PRECISION,
    )  # fmt: skip
    if HAS_SECOND:
        tl.debug_barrier()  # what other threads wrote of h1 is read
        _layer(
            p_h1 + first * n1, p_weight2, p_h2 + first * n2, p_noise + s_noise_l + first * s_noise_r,
            b_seed, b_position, stream + 1, o_r, m_r, n1, n2, p_dropout, scale, n1, 1, s_w2, s_noise_r,
            DROPOUT, BR, BN, BK, EVEN_N1, PRECISION,
        )  # fmt: skip


@triton.jit
def _masked_gradient(b_dh, p_h, m, scale):
    """d of dh, float32, at the places of h that p_h points at."""
    return tl.where(tl.load(p_h, mask=m, other=0.0) <= 0.0, 0.0, b_dh.to(tl.float32) * scale)


@triton.jit
def _input_gradient(
    p_d, p_weight, p_out, p_h, o_r, m_r, K, n, scale, s_w,
    MASKS: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes d W [rows, n], of d [rows, K] and W [K, n], masked by the layer below if MASKS."""
    o_k = tl.arange(0, BK)
    for first in range(0, n, BN):
        o_n = first + tl.arange(0, BN)
        m_n = o_n < n
        p_rows = p_weight + (o_k.to(tl.int64) * s_w)[:, None] + o_n[None, :]
        p_columns = p_d + o_r[:, None] * K + o_k[None, :]
        b_dh = tl.zeros((BR, BN), tl.float32)
        for k in range(0, K, BK):
            if EVEN:
                b_d = tl.load(p_columns + k, mask=m_r[:, None], other=0.0)  # [BR, BK]
                b_w = tl.load(p_rows + k * s_w, mask=m_n[None, :], other=0.0)  # [BK, BN]
            else:
                m_k = o_k < K - k
                b_d = tl.load(p_columns + k, mask=m_r[:, None] & m_k[None, :], other=0.0)
                b_w = tl.load(p_rows + k * s_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_dh = tl.dot(b_d, b_w, b_dh, input_precision=PRECISION)
        m = m_r[:, None] & m_n[None, :]
        o_tile = o_r[:, None] * n + o_n[None, :]
        if MASKS:
            b_dh = _masked_gradient(b_dh, p_h + o_tile, m, scale)
        tl.store(p_out + o_tile, b_dh.to(p_out.dtype.element_ty), mask=m)


@triton.jit
def prenet_bwd_kernel(
    p_dh2, p_h2, p_h1, p_weight2, p_weight1, p_d2, p_d1, p_dx, N, K, n1, n2, scale, s_dr, s_dc, s_w1, s_w2,
    HAS_FIRST: tl.constexpr, WANTS_DX: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    EVEN_N1: tl.constexpr, EVEN_N2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d2 [N, n2]; with HAS_FIRST d1 [N, n1]; with WANTS_DX dx [N, K], of the first layer there is; grid (blocks of N).

    Without HAS_FIRST the first layer is layer 2, whose input has K numbers then.
    """
    o_r = tl.arange(0, BR)
    first = tl.program_id(0).to(tl.int64) * BR
    m_r = first + o_r < N
    for first_n in range(0, n2, BK):
        o_n = first_n + tl.arange(0, BK)
        m = m_r[:, None] & (o_n < n2)[None, :]
        b_dh = tl.load(p_dh2 + first * s_dr + o_r[:, None] * s_dr + (o_n * s_dc)[None, :], mask=m, other=0.0)
        o_tile = o_r[:, None] * n2 + o_n[None, :]
        b_d = _masked_gradient(b_dh, p_h2 + first * n2 + o_tile, m, scale)
        tl.store(p_d2 + first * n2 + o_tile, b_d.to(p_d2.dtype.element_ty), mask=m)
    if HAS_FIRST:
        tl.debug_barrier()  # what other threads wrote of d2 is read
        _input_gradient(
            p_d2 + first * n2, p_weight2, p_d1 + first * n1, p_h1 + first * n1, o_r, m_r, n2, n1, scale, s_w2,
            True, BR, BN, BK, EVEN_N2, PRECISION,
        )  # fmt: skip
    if WANTS_DX:
        tl.debug_barrier()
        if HAS_FIRST:
            _input_gradient(
                p_d1 + first * n1, p_weight1, p_dx + first * K, p_h1, o_r, m_r, n1, K, scale, s_w1,
                False, BR, BN, BK, EVEN_N1, PRECISION,
            )  # fmt: skip
        else:
            _input_gradient(
                p_d2 + first * n2, p_weight2, p_dx + first * K, p_h1, o_r, m_r, n2, K, scale, s_w2,
                False, BR, BN, BK, EVEN_N2, PRECISION,
            )  # fmt: skip


def _pick(kernel: str, configs: tuple[Config, ...], x: Tensor, rows: int, units: int) -> Config:
    def most_rows_that_fill(dtype: torch.dtype, rows: int, units: int) -> Config:
        return next((c for c in configs if rows >= PROGRAMS * c["BR"]), configs[-1])

    return pick_config(kernel, configs, most_rows_that_fill, x, rows=rows, units=units)


def _forward(
    x: Tensor,
    weights: Sequence[Tensor],
    p_dropout: float,
    noise: Tensor | None,
    seeds: Tensor | None,
    start: int,
    layer: int,
) -> list[Tensor]:
    """The outputs of one or two layers, of which the first is number `layer`, [N, n_out] each, dense."""
    N, K = x.shape
    outputs = [torch.empty((N, len(weight)), dtype=x.dtype, device=x.device) for weight in weights]
    if N == 0:
        return outputs
    dropout = "none" if p_dropout == 0 else "seeds" if noise is None else "noise"
    first, last = weights[0], weights[-1]
    config = _pick("prenet_fwd", FORWARD_CONFIGS[x.dtype.itemsize], x, N, len(last))
    launch(
        OP, prenet_fwd_kernel, (triton.cdiv(N, config["BR"]),),
        x, first, last, outputs[0], outputs[-1], x if noise is None else noise, seeds if dropout == "seeds" else x,
        N, K, len(first), len(last), N if seeds is None else N // len(seeds), start, layer,
        p_dropout, 1.0 / (1.0 - p_dropout),
        *x.stride(), first.stride(0), last.stride(0), *((0, 0) if noise is None else noise.stride()[:2]),
        device=x.device, HAS_SECOND=len(weights) == 2, DROPOUT=dropout, EVEN_K=K % config["BK"] == 0,
        EVEN_N1=len(first) % config["BK"] == 0, PRECISION=product_precision(x.dtype), **config,
    )  # fmt: skip
    return outputs


def _backward(
    dh: Tensor, weights: Sequence[Tensor], outputs: Sequence[Tensor], p_dropout: float, needs_first: bool, needs_x: bool
) -> tuple[list[Tensor | None], Tensor | None]:
    """(d of each layer, the first one's only if it is needed; dx [N, n_in] if needed)."""
    N = dh.shape[0]
    first, last = weights[0], weights[-1]
    has_first = len(weights) == 2 and (needs_first or needs_x)
    d_last = torch.empty_like(outputs[-1])
    d_first = torch.empty_like(outputs[0]) if has_first else None
    dx = dh.new_empty((N, first.shape[1])) if needs_x else None
    if N > 0:
        config = _pick("prenet_bwd", BACKWARD_CONFIGS[dh.dtype.itemsize], dh, N, len(last))
        launch(
            OP, prenet_bwd_kernel, (triton.cdiv(N, config["BR"]),),
            dh, outputs[-1], outputs[0], last, first, d_last, d_last if d_first is None else d_first,
            d_last if dx is None else dx, N, first.shape[1], len(first), len(last), 1.0 / (1.0 - p_dropout),
            *dh.stride(), first.stride(0), last.stride(0),
            device=dh.device, HAS_FIRST=has_first, WANTS_DX=needs_x, EVEN_N1=len(first) % config["BK"] == 0,
            EVEN_N2=len(last) % config["BK"] == 0, PRECISION=product_precision(dh.dtype), **config,
        )  # fmt: skip
    return [d_last] if len(weights) == 1 else [d_first, d_last], dx


class _Layers(Function):
    """One or two layers, the arguments of `_forward`."""

    @staticmethod
    def forward(ctx, x, p_dropout, noise, seeds, start, layer, *weights):
        outputs = _forward(x, weights, p_dropout, noise, seeds, start, layer)
        ctx.save_for_backward(x, *weights, *outputs)
        ctx.p_dropout = p_dropout
        ctx.set_materialize_grads(False)
        return outputs[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        n = len(ctx.saved_tensors) // 2
        if dh is None:
            return (None,) * (6 + n)
        x, *others = ctx.saved_tensors
        weights, outputs = others[:n], others[n:]
        needs_x, *needs = ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]
        ds, dx = _backward(dh, weights, outputs, ctx.p_dropout, needs[0], needs_x)
        with backend.without_autocast(x):  # forward may have been called where it was off
            gradients = [d.T @ h if need else None for d, h, need in zip(ds, [x, *outputs[:-1]], needs, strict=True)]
        return dx, None, None, None, None, None, *gradients


def prenet(
    x: Tensor,
    weights: Sequence[Tensor],
    p_dropout: float,
    noise: Tensor | None = None,
    *,
    seeds: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Linear layers without bias, each followed by ReLU and dropout that is always on.

    Shen et al. 2018, "Natural TTS synthesis by conditioning WaveNet on mel spectrogram predictions", section 2.2.
    Under autocast x and the weights are cast as those of a linear layer.

    Args:
        x: [..., n_in], any strides; with seeds [B, steps, n_in], or [B, n_in] for one step.
        weights: one [n_out, n_in] a layer, of the dtype of x; any number of them.
        p_dropout: probability of dropping a unit, in [0, 1); the others are divided by 1 - p_dropout.
        noise: uniform numbers in [0, 1), float32 [n_layers, ..., n_out], for layers of one width: a unit is kept
            where its number is at least `p_dropout`.
        seeds: [B] int64, one an item, instead of noise: a unit's number depends on the item's seed, the layer, the
            decoder step and the unit only (`uniform_noise`). With neither a seed is drawn from PyTorch's generator.
        start: the decoder step of x's first.

    Returns:
        [..., n_out of the last layer].

    Raises:
        FastglowError: shapes, p_dropout, noise or seeds that do not fit the above.
    """
    _check(x, weights, p_dropout, noise, seeds, start)
    dtype = backend.autocast_dtype(x)
    if dtype is not None:
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    if not backend.picks_triton(OP, x, *weights, noise, seeds, unsupported=_unsupported(x, weights, noise)):
        return reference_prenet(x, weights, p_dropout, noise, seeds=seeds, start=start)
    h = x.reshape(-1, x.shape[-1])
    if noise is not None:
        noise = noise.reshape(len(weights), len(h), -1)
        noise = noise if noise.stride(2) == 1 else noise.contiguous()
    elif seeds is None and p_dropout > 0:
        seeds = random_seed(x.device).view(1)
    seeds = None if seeds is None else seeds.contiguous()
    weights = [weight if weight.stride(1) == 1 else weight.contiguous() for weight in weights]
    for i in range(0, len(weights), LAYERS):
        numbers = None if noise is None else noise[i : i + LAYERS]
        h = _Layers.apply(h, p_dropout, numbers, seeds, start, i, *weights[i : i + LAYERS])
    return h.view(*x.shape[:-1], h.shape[1])


def _unsupported(x: Tensor, weights: Sequence[Tensor], noise: Tensor | None) -> str | None:
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in (x, *weights)}
    if len(dtypes) > 1:
        return f"x and the weights have the dtypes {', '.join(sorted(dtypes))}"
    if noise is not None and noise.dtype != torch.float32:
        return f"the noise is {str(noise.dtype).removeprefix('torch.')}, not float32"
    return None


def _check(x, weights, p_dropout, noise, seeds, start) -> None:
    n = x.shape[-1]
    for i, weight in enumerate(weights):
        if weight.dim() != 2 or weight.shape[1] != n:
            raise FastglowError(f"weight {i} has shape {tuple(weight.shape)}: an input of {n} numbers takes [n, {n}]")
        n = len(weight)
    if not weights:
        raise FastglowError("weights is empty: pass one [n_out, n_in] a layer")
    if not 0 <= p_dropout < 1:
        raise FastglowError(f"p_dropout {p_dropout} is not in [0, 1): a prenet that drops everything says nothing")
    if noise is not None and seeds is not None:
        raise FastglowError("both noise and seeds are given: pass one of them")
    if noise is not None:
        widths = {len(weight) for weight in weights}
        shape = (len(weights), *x.shape[:-1], n)
        if len(widths) > 1:
            raise FastglowError(f"noise serves layers of one width, not of {sorted(widths)}: pass seeds")
        if noise.shape != shape:
            raise FastglowError(f"noise has shape {tuple(noise.shape)}, not {shape}, beside x {tuple(x.shape)}")
    if seeds is not None:
        if x.dim() not in (2, 3):
            raise FastglowError(f"x has shape {tuple(x.shape)}: with seeds pass [B, steps, n_in] or [B, n_in]")
        if seeds.shape != x.shape[:1] or seeds.dtype != torch.int64:
            raise FastglowError(
                f"seeds is {str(seeds.dtype).removeprefix('torch.')} {tuple(seeds.shape)}: pass int64 ({len(x)},)"
            )
    if start < 0:
        raise FastglowError(f"start {start} is negative: it is a decoder step")
