"""The kernels of `location_attention` and their launchers.

Maths, layout and cost: kernels/README.md.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import dot_size, item_length, strides
from ..launch import Config, launch, pick_config, product_precision, split_config
from .attend import (
    WIDE_ATTENTION,
    AttentionBlocks,
    AttentionItem,
    AttentionSizes,
    AttentionStrides,
    attend_context,
    attend_weights,
)
from .attend_bwd import AttentionGradients, AttentionScratch, AttentionUpstream, attend_bwd

OP = "location_attention"
PROGRAMS = 128  # enough to fill a GPU


def _config(bt: int, bk: int, br: int, bd: int, num_warps: int) -> Config:
    return {"BT": bt, "BK": bk, "BR": br, "BD": bd, "num_warps": num_warps, "num_stages": 2}


# By element size and whether A is above WIDE_ATTENTION. A forward program computes all weights of its item for BD
# columns of the context, so a small BD is for few items.
FORWARD_CONFIGS = {
    (2, False): (_config(64, 64, 16, 512, 8), _config(64, 64, 32, 128, 8), _config(64, 64, 32, 64, 8)),
    (2, True): (_config(16, 64, 16, 512, 8), _config(16, 64, 64, 64, 8)),
    (4, False): (_config(32, 16, 16, 512, 8), _config(32, 16, 32, 64, 8)),
    (4, True): (_config(16, 16, 16, 512, 8), _config(16, 16, 32, 128, 8)),
}
BACKWARD_CONFIGS = {
    (2, False): (_config(64, 64, 16, 256, 8),),
    (2, True): (_config(16, 16, 16, 256, 8),),
    (4, False): (_config(16, 16, 16, 256, 8),),
    (4, True): (_config(16, 16, 16, 256, 16),),
}


# Structs that hold None or a constant are built inside the call that takes them: Triton turns values that are assigned
# or returned into tensors, which Triton 3.3 cannot do with None.


class BatchStrides(NamedTuple):
    """From item to item."""

    query: Any
    memory: Any
    processed_memory: Any
    weights_cat: Any
    mask: Any
    rows: Any


@triton.jit
def _query(p_query, i_b, A, s_query, BA: tl.constexpr):
    """The projected query of an item, [BA] float32."""
    o_a = tl.arange(0, BA)
    return tl.load(p_query + i_b * s_query + o_a, mask=o_a < A, other=0.0).to(tl.float32)


@triton.jit
def location_attention_fwd_kernel(
    p_query, batch, p_lengths, p_rows, p_weights, p_context, sizes, strides, s_batch, blocks
):  # fmt: skip
    """Grid (blocks of D, B).

    Args:
        batch: AttentionItem of item 0.
        p_rows: [blocks of D, B, T] float32: each program's copy of the weights.
        p_weights: [B, T], any float dtype.
        p_context: [B, D].
        s_batch: BatchStrides.
    """
    T, D = sizes.T, sizes.D
    i_d, i_b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    length = item_length(p_lengths, i_b, T, p_lengths is not None)
    p_memory = batch.memory + i_b * s_batch.memory
    p_rows += (i_d * tl.num_programs(1) + i_b) * T
    attend_weights(
        _query(p_query, i_b, sizes.A, s_batch.query, blocks.BA),
        AttentionItem(
            p_memory,
            batch.processed_memory + i_b * s_batch.processed_memory,
            batch.previous + i_b * s_batch.weights_cat,
            batch.cumulative + i_b * s_batch.weights_cat,
            batch.location,
            batch.v,
            batch.v_bias,
            None if batch.mask is None else batch.mask + i_b * s_batch.mask,
        ),
        p_rows,
        length,
        sizes,
        strides,
        blocks,
    )
    tl.debug_barrier()
    if i_d == 0:
        for t0 in range(0, T, blocks.BT):
            o_t = t0 + tl.arange(0, blocks.BT)
            tl.store(p_weights + i_b * T + o_t, tl.load(p_rows + o_t, mask=o_t < T, other=0.0), mask=o_t < T)
    b_context = attend_context(p_memory, p_rows, i_d * blocks.BD, length, D, strides, blocks)
    o_d = i_d * blocks.BD + tl.arange(0, blocks.BD)
    tl.store(p_context + i_b * D + o_d, b_context, mask=o_d < D)


@triton.jit
def location_attention_bwd_kernel(
    p_query, batch, p_lengths, p_rows, upstream, p_dquery, gradients, scratch, sizes, strides, s_batch, blocks
):  # fmt: skip
    """Grid (B,).

    Args:
        batch, upstream, gradients, scratch: pointers to item 0. The gradients of the previous and the cumulative
            weights are [B, 2, T], everything else is contiguous.
        p_rows: the weights, float32, rows s_batch.rows apart.
        p_dquery: [B, A].
        s_batch: BatchStrides.
    """
    T, A, D, s_l = sizes.T, sizes.A, sizes.D, strides.location
    i_b = tl.program_id(0).to(tl.int64)
    length = item_length(p_lengths, i_b, T, p_lengths is not None)
    b_dquery = attend_bwd(
        _query(p_query, i_b, A, s_batch.query, blocks.BA),
        AttentionItem(
            batch.memory + i_b * s_batch.memory,
            batch.processed_memory + i_b * s_batch.processed_memory,
            batch.previous + i_b * s_batch.weights_cat,
            batch.cumulative + i_b * s_batch.weights_cat,
            batch.location,
            batch.v,
            batch.v_bias,
            None,
        ),
        p_rows + i_b * s_batch.rows,
        AttentionUpstream(upstream.context + i_b * D, None if upstream.weights is None else upstream.weights + i_b * T),
        AttentionGradients(
            gradients.processed_memory + i_b * T * A,
            gradients.location + i_b * A * s_l,
            gradients.v + i_b * A,
            gradients.v_bias + i_b,
            None if gradients.previous is None else gradients.previous + i_b * 2 * T,
            None if gradients.cumulative is None else gradients.cumulative + i_b * 2 * T,
        ),
        AttentionScratch(
            scratch.d_weights + i_b * T, None if scratch.windows is None else scratch.windows + i_b * T * s_l
        ),
        length,
        sizes,
        strides,
        blocks,
    )
    o_a = tl.arange(0, blocks.BA)
    tl.store(p_dquery + i_b * A + o_a, b_dquery, mask=o_a < A)


class Inputs(NamedTuple):
    """Tensors of a call as the kernels read them."""

    query: Tensor  # projected, [B, A], contiguous rows
    memory: Tensor  # [B, T, D]
    processed_memory: Tensor  # [B, T, A]
    weights_cat: Tensor  # [B, 2, T], contiguous rows
    location: Tensor  # U [A, 2k and padding], contiguous
    v: Tensor  # [A], contiguous
    v_bias: Tensor | None  # [1]
    mask: Tensor | None  # [B, T]
    lengths: Tensor | None  # [B], contiguous


class Gradients(NamedTuple):
    """Of `Inputs`, in the same order."""

    query: Tensor | None = None
    memory: Tensor | None = None
    processed_memory: Tensor | None = None
    weights_cat: Tensor | None = None
    location: Tensor | None = None
    v: Tensor | None = None
    v_bias: Tensor | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None


class Options(NamedTuple):
    taps: int  # k
    sharpening: float
    normalization: str
    weights_dtype: torch.dtype  # of the weights that are returned


def location_attention_fwd(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """(context [B, D], weights [B, T], the weights in float32)."""
    memory, location = inputs.memory, inputs.location
    B, T, D = memory.shape
    configs = FORWARD_CONFIGS[location.dtype.itemsize, len(location) > WIDE_ATTENTION]

    def widest_that_fills(dtype: torch.dtype, items: int, columns: int) -> Config:
        return next((c for c in configs if items * triton.cdiv(columns, c["BD"]) >= PROGRAMS), configs[-1])

    config = pick_config("location_attention_fwd", configs, widest_that_fills, location, items=B, columns=D)
    n_blocks = triton.cdiv(D, config["BD"])
    rows = memory.new_empty((n_blocks, B, T), dtype=torch.float32)
    weights = memory.new_empty((B, T), dtype=options.weights_dtype)
    context = memory.new_empty((B, D), dtype=location.dtype)
    if memory.numel() == 0:
        return context.zero_(), weights.zero_(), rows.zero_()[0]
    blocks, launch_options = _blocks(inputs, options, config)
    launch(
        OP, location_attention_fwd_kernel, (n_blocks, B),
        inputs.query, _batch(inputs), inputs.lengths, rows, weights, context,
        *_sizes_and_strides(inputs, options), blocks,
        device=memory.device, **launch_options,
    )  # fmt: skip
    return context, weights, rows[0]


def location_attention_bwd(
    inputs: Inputs,
    options: Options,
    rows: Tensor,
    dcontext: Tensor,
    dweights: Tensor | None,
    wants_weights_cat: bool,
) -> Gradients:
    """All gradients except the memory's.

    Args:
        inputs, options: of the forward pass; a mask makes no difference.
        rows: the weights in float32.
        dcontext, dweights: upstream gradients, contiguous.
        wants_weights_cat: whether the gradient of weights_cat is wanted.
    """
    query, memory, processed_memory, weights_cat, location, v, v_bias, _, lengths = inputs
    B, T, D = memory.shape
    A, columns = location.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return memory.new_empty(shape, dtype=dtype)

    dquery, dprocessed = empty(B, A, dtype=query.dtype), empty(B, T, A, dtype=processed_memory.dtype)
    dlocation, dv, dv_bias = empty(B, A, columns), empty(B, A), empty(B)
    dcat = empty(B, 2, T, dtype=weights_cat.dtype) if wants_weights_cat else None
    configs = BACKWARD_CONFIGS[location.dtype.itemsize, A > WIDE_ATTENTION]
    config = pick_config(
        "location_attention_bwd", configs, lambda dtype, **shape: configs[0], location, items=B, columns=D
    )
    blocks, launch_options = _blocks(inputs, options, config)
    launch(
        OP, location_attention_bwd_kernel, (B,),
        query, _batch(inputs), lengths, rows, AttentionUpstream(dcontext, dweights), dquery,
        AttentionGradients(
            dprocessed, dlocation, dv, dv_bias, dcat, None if dcat is None else dcat[:, 1]
        ),
        AttentionScratch(empty(B, T), empty(B, T, columns) if wants_weights_cat else None),
        *_sizes_and_strides(inputs, options, rows), blocks,
        device=memory.device, **launch_options,
    )  # fmt: skip
    total = dlocation.sum(0).to(location.dtype)
    total[:, 2 * options.taps :] = 0.0  # padding, which the kernel does not write
    return Gradients(
        query=dquery,
        processed_memory=dprocessed,
        weights_cat=dcat,
        location=total,
        v=dv.sum(0).to(v.dtype),
        v_bias=None if v_bias is None else dv_bias.sum(0, keepdim=True).to(v_bias.dtype),
    )


def _batch(inputs: Inputs) -> AttentionItem:
    cat = inputs.weights_cat
    return AttentionItem(
        inputs.memory, inputs.processed_memory, cat, cat[:, 1], inputs.location, inputs.v, inputs.v_bias, inputs.mask
    )


def _sizes_and_strides(
    inputs: Inputs, options: Options, rows: Tensor | None = None
) -> tuple[AttentionSizes, AttentionStrides, BatchStrides]:
    """`rows`: the backward kernel's; in the forward kernel another stride would only compile it again."""
    memory, processed = inputs.memory, inputs.processed_memory
    s_mask, s_mask_t = strides(inputs.mask, 0, 1)
    (s_rows,) = strides(rows, 0)
    return (
        AttentionSizes(memory.shape[1], len(inputs.location), memory.shape[2], options.sharpening),
        AttentionStrides(
            memory_t=memory.stride(1),
            memory_d=memory.stride(2),
            processed_t=processed.stride(1),
            processed_a=processed.stride(2),
            location=inputs.location.stride(0),
            mask=s_mask_t,
        ),
        BatchStrides(
            query=inputs.query.stride(0),
            memory=memory.stride(0),
            processed_memory=processed.stride(0),
            weights_cat=inputs.weights_cat.stride(0),
            mask=s_mask,
            rows=s_rows,
        ),
    )


def _blocks(inputs: Inputs, options: Options, config: Config) -> tuple[AttentionBlocks, dict[str, int]]:
    return split_config(
        AttentionBlocks,
        config,
        TAPS=options.taps,
        NORMALIZATION=options.normalization,
        PRECISION=product_precision(inputs.location.dtype),
        BA=dot_size(len(inputs.location)),
    )
