"""Runs the backward frames, then computes the gradients that are products over all frames.

Maths, layout and cost: kernels/README.md.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..arguments import dot_size
from ..launch import product_precision
from ..location_attention import fold_location
from ..location_attention.attend import WIDE_ATTENTION
from ..reference.teacher_forced_loop import Arguments
from .backward import (
    ATTEND_BACKWARD_CONFIGS,
    LSTM_BACKWARD_CONFIGS,
    PRODUCT_CONFIGS,
    AttendBackwardBlocks,
    AttendBackwardSizes,
    AttendBackwardTensors,
    LSTMBackwardBlocks,
    LSTMBackwardSizes,
    LSTMBackwardTensors,
    ProductBlocks,
    ProductSizes,
    ProductTensors,
    teacher_forced_attend_bwd_kernel,
    teacher_forced_lstm_bwd_kernel,
    teacher_forced_product_bwd_kernel,
)
from .forward import Histories
from .frame import Dropout, Plan, pick
from .replay import prepare, run, tile_sizes

MAX_SPLITS, SMALLEST_DEPTH = 4, 1024
"""Products over the gates are split into at most MAX_SPLITS parts of at least SMALLEST_DEPTH gates each."""


class LoopGradients(NamedTuple):
    """Results of the backward frames, inputs of the products after the loop."""

    gates_a: Tensor  # [T, B, 4 n_a]
    gates_d: Tensor  # [T, B, 4 n_d]
    contexts: Tensor  # [T, B, D]
    queries: Tensor  # [T, B, A]
    processed_memory: Tensor  # [B, T_in, A] float32
    item_sums: Tensor  # [B, A + A * padded 2k + D] float32: gradients of v, of U, of a frame's context: one zeroing


def run_backward(
    d_hidden_contexts: Tensor,
    d_alignments: Tensor | None,
    arguments: Arguments,
    lengths: Tensor,
    seed: Tensor | None,
    kept: Histories,
    plan: Plan,
) -> LoopGradients:
    memory, weights = arguments.memory, arguments.weights
    T, B, P, T_in, D, A, n_a, n_d = plan.T, plan.B, plan.P, plan.T_in, plan.D, plan.A, plan.n_a, plan.n_d
    precision = product_precision(memory.dtype)
    location = fold_location(weights.attention.location_conv, weights.attention.location_dense, memory.dtype)
    gradients = LoopGradients(
        gates_a=torch.empty_like(kept.gates_a),
        gates_d=torch.empty_like(kept.gates_d),
        contexts=memory.new_empty(T, B, D),
        queries=memory.new_empty(T, B, A),
        processed_memory=memory.new_zeros(B, T_in, A, dtype=torch.float32),
        item_sums=memory.new_zeros(B, A + location.numel() + D, dtype=torch.float32),
    )
    if not T or not B:
        return gradients
    splits = max(1, min(MAX_SPLITS, 4 * max(n_a, n_d) // SMALLEST_DEPTH))
    # Zeros, because frame T - 1 has no next frame.
    parts_d = memory.new_zeros(splits, B, n_a + D + n_d, dtype=torch.float32)
    parts_a = memory.new_zeros(splits, B, D + n_a, dtype=torch.float32)

    def lstm(tensors: LSTMBackwardTensors, n: int, dropout: Dropout | None):
        config = pick("teacher_forced_lstm_bwd", LSTM_BACKWARD_CONFIGS[memory.itemsize], memory, B, n_a)
        sizes = LSTMBackwardSizes(
            B, n, A, s_next=tensors.next_parts.stride(1), s_upstream=n_d + D, s_decoder=parts_d.stride(1)
        )
        blocks = LSTMBackwardBlocks(**tile_sizes(config), SPLITS=splits, PRECISION=precision)
        grid = triton.cdiv(n, config["BU"]), triton.cdiv(B, config["BB"])
        rows = None if tensors.dquery is None else config["BB"]
        return prepare(teacher_forced_lstm_bwd_kernel, grid, tensors, (sizes, dropout), blocks, config, QUERY_ROWS=rows)

    def product(d_gates: Tensor, weight_ih: Tensor, weight_hh: Tensor, parts: Tensor):
        config = pick("teacher_forced_product_bwd", PRODUCT_CONFIGS[memory.itemsize], memory, B, n_a)
        K, n_1, n_2 = *weight_ih.shape, weight_hh.shape[1]
        blocks_1, blocks_2 = triton.cdiv(n_1, config["BN"]), triton.cdiv(n_2, config["BN"])
        depth = triton.cdiv(triton.cdiv(K, config["BK"]), splits) * config["BK"]
        sizes = ProductSizes(B, K, n_1, n_2, s_1=weight_ih.stride(0), n_blocks_1=blocks_1, depth=depth)
        blocks = ProductBlocks(**tile_sizes(config), EVEN_K=K % config["BK"] == 0, SPLITS=splits, PRECISION=precision)
        tensors = ProductTensors(d_gates, weight_ih, weight_hh, parts)
        grid = blocks_1 + blocks_2, triton.cdiv(B, config["BB"]), splits
        return prepare(teacher_forced_product_bwd_kernel, grid, tensors, (sizes,), blocks, config)

    def attention():
        candidates = ATTEND_BACKWARD_CONFIGS[memory.itemsize, A > WIDE_ATTENTION]
        config = pick("teacher_forced_attend_bwd", candidates, memory, B, A)
        tensors = AttendBackwardTensors(
            query=kept.queries,
            weights=kept.weights,
            cumulative=kept.cumulative,
            memory=memory,
            processed_memory=arguments.processed_memory,
            location=location,
            v=weights.attention.v,
            lengths=lengths,
            upstream=d_hidden_contexts[:, :, n_d:],
            decoder_parts=parts_d[:, :, n_a:],
            next_parts=parts_a,
            dalignments=d_alignments,
            dcontexts=gradients.contexts,
            dqueries=gradients.queries,
            item_sums=gradients.item_sums,
            dweights=memory.new_zeros(B, 3, T_in, dtype=torch.float32),
            dprocessed=gradients.processed_memory,
            dwindows=memory.new_empty(B, T_in, location.shape[1], dtype=torch.float32),
            dz=memory.new_empty(B, T_in, A),
        )
        sizes = AttendBackwardSizes(B, A, D, s_upstream=n_d + D, s_decoder=parts_d.stride(1), s_next=parts_a.stride(1))
        full = dot_size(A) == A
        blocks = AttendBackwardBlocks(
            **tile_sizes(config), **plan.attention_blocks(location), FULL_A=full, SPLITS=splits
        )
        return prepare(teacher_forced_attend_bwd_kernel, (B,), tensors, (sizes,), blocks, config)

    cell_a, cell_d = weights.attention_rnn, weights.decoder_rnn
    tensors_d = LSTMBackwardTensors(
        gates=kept.gates_d,
        dgates=gradients.gates_d,
        c=kept.cells_d,
        dc=kept.cells_d.new_zeros(B, n_d),
        next_parts=parts_d[:, :, n_a + D :],
        upstream=d_hidden_contexts,
        decoder_parts=None,
        dquery=None,
        query_weight=None,
        seed=seed,
    )
    tensors_a = LSTMBackwardTensors(
        gates=kept.gates_a,
        dgates=gradients.gates_a,
        c=kept.cells_a,
        dc=kept.cells_a.new_zeros(B, n_a),
        next_parts=parts_a[:, :, D:],
        upstream=None,
        decoder_parts=parts_d,
        dquery=gradients.queries,
        query_weight=weights.attention.query,
        seed=seed,
    )
    run(
        [
            lstm(tensors_d, n_d, plan.decoder_dropout()),
            product(gradients.gates_d, cell_d.weight_ih, cell_d.weight_hh, parts_d),
            attention(),
            lstm(tensors_a, n_a, plan.attention_dropout()),
            product(gradients.gates_a, cell_a.weight_ih[:, P:], cell_a.weight_hh, parts_a),
        ],
        T,
        T_in,
        memory.device,
    )
    return gradients


def after_the_loop(
    arguments: Arguments, kept: Histories, gradients: LoopGradients, plan: Plan, wanted: Arguments
) -> Arguments:
    """The arguments' gradients; None where not wanted."""
    weights, dtype, n_d = arguments.weights, arguments.memory.dtype, plan.n_d
    conv, dense = weights.attention.location_conv, weights.attention.location_dense
    d_a, d_d = gradients.gates_a.flatten(0, 1), gradients.gates_d.flatten(0, 1)  # [T B, 4n]
    states, hidden, contexts = kept.states, kept.outputs[:, :, :n_d], kept.outputs[:, :, n_d:]
    d_v, d_location = gradients.item_sums.sum(dim=0)[: -plan.D].tensor_split([plan.A])
    d_location = d_location.view(plan.A, -1)[:, : conv[0].numel()]
    d_inputs = d_memory = d_conv = d_dense = None
    if wanted.decoder_inputs:
        d_inputs = gradients.gates_a @ weights.attention_rnn.weight_ih[:, : plan.P]
    if wanted.memory:
        d_memory = torch.bmm(kept.weights[1:].to(dtype).permute(1, 2, 0), gradients.contexts.transpose(0, 1))
    if wanted.location_conv:
        d_conv = (dense.to(d_location.dtype).T @ d_location).view_as(conv).to(conv.dtype)
    if wanted.location_dense:
        d_dense = (d_location @ conv.to(d_location.dtype).flatten(1).T).to(dense.dtype)
    d_bias_a = d_a.sum(dim=0) if wanted.attention_bias_ih or wanted.attention_bias_hh else None
    d_bias_d = d_d.sum(dim=0) if wanted.decoder_bias_ih or wanted.decoder_bias_hh else None

    def product(is_wanted: bool, d: Tensor, *inputs: Tensor) -> Tensor | None:
        """d^T inputs, the inputs side by side."""
        if not is_wanted:
            return None
        widths = [x.shape[2] for x in inputs]
        gradient = d.new_empty(d.shape[1], sum(widths))
        for part, x in zip(gradient.split(widths, dim=1), inputs, strict=True):
            torch.mm(d.T, x.flatten(0, 1), out=part)
        return gradient

    return Arguments(
        decoder_inputs=d_inputs,
        memory=d_memory,
        processed_memory=gradients.processed_memory.to(dtype) if wanted.processed_memory else None,
        attention_weight_ih=product(wanted.attention_weight_ih, d_a, arguments.decoder_inputs, contexts[:-1]),
        attention_weight_hh=product(wanted.attention_weight_hh, d_a, states[:-1]),
        attention_bias_ih=d_bias_a,
        attention_bias_hh=d_bias_a,
        query=product(wanted.query, gradients.queries.flatten(0, 1), states[1:]),
        location_conv=d_conv,
        location_dense=d_dense,
        v=d_v.unsqueeze(0).to(dtype) if wanted.v else None,
        decoder_weight_ih=product(wanted.decoder_weight_ih, d_d, states[1:], contexts[1:]),
        decoder_weight_hh=product(wanted.decoder_weight_hh, d_d, hidden[:-1]),
        decoder_bias_ih=d_bias_d,
        decoder_bias_hh=d_bias_d,
    )
