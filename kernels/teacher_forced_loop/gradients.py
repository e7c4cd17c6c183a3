"""Runs the backward frames, then computes the gradients that are products over all frames.

Maths, layout and cost: kernels/README.md.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..launch import Config, launch, product_precision, split_config
from ..location_attention import fold_location
from ..location_attention.attend import WIDE_ATTENTION
from ..reference.teacher_forced_loop import Arguments
from .attention_backward import (
    ATTENTION_SUMS_CONFIGS,
    CONTEXT_BACKWARD_CONFIGS,
    ENERGIES_BACKWARD_CONFIGS,
    ContextBackwardBlocks,
    ContextBackwardSizes,
    ContextBackwardTensors,
    EnergiesBackwardBlocks,
    EnergiesBackwardTensors,
    SumsBlocks,
    SumsInputs,
    SumsOutputs,
    teacher_forced_attention_sums_bwd_kernel,
    teacher_forced_context_bwd_kernel,
    teacher_forced_energies_bwd_kernel,
)
from .backward import (
    LSTM_BACKWARD_CONFIGS,
    PRODUCT_CONFIGS,
    LSTMBackwardBlocks,
    LSTMBackwardSizes,
    LSTMBackwardTensors,
    ProductBlocks,
    ProductSizes,
    ProductTensors,
    teacher_forced_lstm_bwd_kernel,
    teacher_forced_product_bwd_kernel,
)
from .forward import Histories
from .frame import OP, SOFTMAX_BLOCK, Dropout, Plan, parts_of, pick
from .replay import Prepared, prepare, run, tile_sizes

MAX_SPLITS, SMALLEST_DEPTH = 8, 512
"""Products over the gates are split into at most MAX_SPLITS parts of at least SMALLEST_DEPTH gates each."""

SUMS_PROGRAMS, SMALLEST_SEGMENT = 512, 16
"""The sums after the loop are split until there are SUMS_PROGRAMS programs, of at least SMALLEST_SEGMENT frames."""


class LoopGradients(NamedTuple):
    """Results of the backward frames, inputs of the sums after the loop."""

    gates_a: Tensor  # [T, B, 4 n_a]
    gates_d: Tensor  # [T, B, 4 n_d]
    contexts: Tensor  # [T, B, D]
    queries: Tensor  # [T, B, A]
    energies: Tensor  # [T, B, T_in] float32, up to each item's length


class _Product(NamedTuple):
    """`teacher_forced_product_bwd_kernel` for one LSTM."""

    weight_ih: Tensor
    weight_hh: Tensor
    config: Config
    sizes: ProductSizes
    grid: tuple[int, int, int]  # blocks of columns, blocks of items, splits

    @classmethod
    def of(cls, weight_ih: Tensor, weight_hh: Tensor, memory: Tensor, plan: Plan) -> "_Product":
        K, n_1, n_2 = *weight_ih.shape, weight_hh.shape[1]

        def splits_and_depth(config: Config) -> tuple[int, int]:
            return parts_of(K, config["BK"], math.prod(tiles(config)), MAX_SPLITS, SMALLEST_DEPTH)

        def tiles(config: Config) -> tuple[int, int]:
            return triton.cdiv(n_1, config["BN"]) + triton.cdiv(n_2, config["BN"]), triton.cdiv(plan.B, config["BB"])

        def grid(config: Config) -> tuple[int, int, int]:
            return *tiles(config), splits_and_depth(config)[0]

        config = pick("teacher_forced_product_bwd", PRODUCT_CONFIGS[memory.itemsize], memory, grid, plan.B, plan.n_a)
        blocks_1, depth = triton.cdiv(n_1, config["BN"]), splits_and_depth(config)[1]
        sizes = ProductSizes(plan.B, K, n_1, n_2, s_1=weight_ih.stride(0), n_blocks_1=blocks_1, depth=depth)
        return cls(weight_ih, weight_hh, config, sizes, grid(config))

    def prepare(self, d_gates: Tensor, parts: Tensor) -> Prepared:
        blocks = ProductBlocks(
            **tile_sizes(self.config),
            EVEN_K=self.sizes.K % self.config["BK"] == 0,
            PRECISION=product_precision(d_gates.dtype),
        )
        tensors = ProductTensors(d_gates, self.weight_ih, self.weight_hh, parts)
        return prepare(teacher_forced_product_bwd_kernel, self.grid, tensors, (self.sizes,), blocks, self.config)


def _attention(
    d_hidden_contexts: Tensor,
    d_alignments: Tensor | None,
    arguments: Arguments,
    lengths: Tensor,
    kept: Histories,
    gradients: LoopGradients,
    parts: tuple[Tensor, Tensor],
    plan: Plan,
) -> tuple[Tensor, Prepared, Prepared]:
    """(the query's partial gradients, the attention's two launches); `parts`: of LSTM_d's and LSTM_a's product."""
    memory, attention = arguments.memory, arguments.weights.attention
    B, T_in, D, A, n_a, n_d = plan.B, plan.T_in, plan.D, plan.A, plan.n_a, plan.n_d
    location = fold_location(attention.location_conv, attention.location_dense, memory.dtype)
    parts_d, parts_a = parts
    dweights = memory.new_empty(B, T_in, dtype=torch.float32)
    dwindows = memory.new_zeros(B, T_in, location.shape[1], dtype=torch.float32)  # zeros: as the parts

    def grid(config: Config) -> tuple[int, int]:
        return B, config["CHUNKS"]

    config = pick("teacher_forced_context_bwd", CONTEXT_BACKWARD_CONFIGS[memory.itemsize], memory, grid, B, D)
    context = prepare(
        teacher_forced_context_bwd_kernel,
        grid(config),
        ContextBackwardTensors(
            memory=memory,
            lengths=lengths,
            upstream=d_hidden_contexts[:, :, n_d:],
            decoder_parts=parts_d[:, :, n_a:],
            next_parts=parts_a,
            dalignments=d_alignments,
            dwindows=dwindows,
            dcumulative=torch.zeros_like(dweights),
            dcontexts=gradients.contexts,
            dweights=dweights,
        ),
        (ContextBackwardSizes(B, D, s_upstream=n_d + D, s_decoder=parts_d.stride(1), s_next=parts_a.stride(1)),),
        ContextBackwardBlocks(
            TAPS=plan.taps,
            **tile_sizes(config),
            S_LOCATION=location.shape[1],
            DECODER_SPLITS=len(parts_d),
            NEXT_SPLITS=len(parts_a),
        ),
        config,
    )
    candidates = ENERGIES_BACKWARD_CONFIGS[memory.itemsize, A > WIDE_ATTENTION]
    config = pick("teacher_forced_energies_bwd", candidates, memory, grid, B, A)
    dquery_parts = dweights.new_empty(config["CHUNKS"], B, A)
    energies = prepare(
        teacher_forced_energies_bwd_kernel,
        grid(config),
        EnergiesBackwardTensors(
            query=kept.queries,
            weights=kept.weights,
            cumulative=kept.cumulative,
            processed_memory=arguments.processed_memory,
            location=location,
            v=attention.v,
            lengths=lengths,
            dweights=dweights,
            denergies=gradients.energies,
            dquery_parts=dquery_parts,
            dwindows=dwindows,
        ),
        (B, A),
        EnergiesBackwardBlocks(**tile_sizes(config), **plan.attention_blocks(location), BS=SOFTMAX_BLOCK),
        config,
    )
    return dquery_parts, context, energies


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
    T, B, P, D, A, n_a, n_d = plan.T, plan.B, plan.P, plan.D, plan.A, plan.n_a, plan.n_d
    precision = product_precision(memory.dtype)
    gradients = LoopGradients(
        gates_a=torch.empty_like(kept.gates_a),
        gates_d=torch.empty_like(kept.gates_d),
        contexts=memory.new_empty(T, B, D),
        queries=memory.new_empty(T, B, A),
        energies=memory.new_empty(T, B, plan.T_in, dtype=torch.float32),
    )
    if not T or not B:
        return gradients
    cell_a, cell_d = weights.attention_rnn, weights.decoder_rnn
    product_d = _Product.of(cell_d.weight_ih, cell_d.weight_hh, memory, plan)
    product_a = _Product.of(cell_a.weight_ih[:, P:], cell_a.weight_hh, memory, plan)
    # Zeros, because frame T - 1 has no next frame.
    parts_d = memory.new_zeros(product_d.grid[2], B, n_a + D + n_d, dtype=torch.float32)
    parts_a = memory.new_zeros(product_a.grid[2], B, D + n_a, dtype=torch.float32)

    def lstm(tensors: LSTMBackwardTensors, n: int, dropout: Dropout | None):
        def grid(config: Config) -> tuple[int, int]:
            return triton.cdiv(n, config["BU"]), triton.cdiv(B, config["BB"])

        config = pick("teacher_forced_lstm_bwd", LSTM_BACKWARD_CONFIGS[memory.itemsize], memory, grid, B, n)
        sizes = LSTMBackwardSizes(
            B, n, A, s_next=tensors.next_parts.stride(1), s_upstream=n_d + D, s_decoder=parts_d.stride(1)
        )
        blocks = LSTMBackwardBlocks(
            **tile_sizes(config),
            NEXT_SPLITS=len(tensors.next_parts),
            DECODER_SPLITS=len(parts_d),
            CHUNKS=None if tensors.dquery_parts is None else len(tensors.dquery_parts),
            PRECISION=precision,
        )
        rows = None if tensors.dquery is None else config["BB"]
        return prepare(
            teacher_forced_lstm_bwd_kernel, grid(config), tensors, (sizes, dropout), blocks, config, QUERY_ROWS=rows
        )

    dquery_parts, context, energies = _attention(
        d_hidden_contexts, d_alignments, arguments, lengths, kept, gradients, (parts_d, parts_a), plan
    )
    tensors_d = LSTMBackwardTensors(
        gates=kept.gates_d,
        dgates=gradients.gates_d,
        c=kept.cells_d,
        dc=kept.cells_d.new_zeros(B, n_d),
        next_parts=parts_d[:, :, n_a + D :],
        upstream=d_hidden_contexts,
        decoder_parts=None,
        dquery_parts=None,
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
        dquery_parts=dquery_parts,
        dquery=gradients.queries,
        query_weight=weights.attention.query,
        seed=seed,
    )
    run(
        [
            lstm(tensors_d, n_d, plan.decoder_dropout()),
            product_d.prepare(gradients.gates_d, parts_d),
            context,
            energies,
            lstm(tensors_a, n_a, plan.attention_dropout()),
            product_a.prepare(gradients.gates_a, parts_a),
        ],
        T,
        plan.T_in,
        memory.device,
    )
    return gradients


def _attention_sums(
    arguments: Arguments, lengths: Tensor, kept: Histories, gradients: LoopGradients, plan: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the processed memory, of U [A, 2k] in float32, and of v [1, A]."""
    memory, attention = arguments.memory, arguments.weights.attention
    T, B, T_in, A = plan.T, plan.B, plan.T_in, plan.A
    location = fold_location(attention.location_conv, attention.location_dense, memory.dtype)
    if not T or not B or not T_in:
        return memory.new_zeros(B, T_in, A), memory.new_zeros(A, 2 * plan.taps), memory.new_zeros(1, A)
    candidates = ATTENTION_SUMS_CONFIGS[memory.itemsize, A > WIDE_ATTENTION]
    config = pick("teacher_forced_attention_sums_bwd", candidates, memory, lambda c: (B, T_in), B, A)
    n_columns = triton.cdiv(2 * plan.taps, config["BK"])
    chunks = min(triton.cdiv(T_in, config["BT"]), triton.cdiv(SUMS_PROGRAMS, B * n_columns))
    segments = min(triton.cdiv(SUMS_PROGRAMS, B * n_columns * chunks), triton.cdiv(T, SMALLEST_SEGMENT))
    n_frames = triton.cdiv(T, segments)
    segments = triton.cdiv(T, n_frames)
    sums = SumsOutputs(
        *(
            memory.new_empty(segments, B, *shape, dtype=torch.float32)
            for shape in ((T_in, A), (chunks, A, location.shape[1]), (chunks, A))
        )
    )
    blocks, options = split_config(SumsBlocks, config, **plan.attention_blocks(location))
    launch(
        OP, teacher_forced_attention_sums_bwd_kernel, (B, chunks * n_columns, segments),
        SumsInputs(
            kept.queries, kept.weights, kept.cumulative, arguments.processed_memory, location, attention.v, lengths,
            gradients.energies,
        ),
        sums, T, B, T_in, A, n_frames, n_columns, blocks,
        device=memory.device, **options,
    )  # fmt: skip
    d_location = sums.location.sum(dim=(0, 1, 2))[:, : 2 * plan.taps]
    d_processed, d_v = sums.processed_memory.sum(dim=0), sums.v.sum(dim=(0, 1, 2)).unsqueeze(0)
    return d_processed.to(memory.dtype), d_location, d_v.to(memory.dtype)


def after_the_loop(
    arguments: Arguments, lengths: Tensor, kept: Histories, gradients: LoopGradients, plan: Plan, wanted: Arguments
) -> Arguments:
    """The arguments' gradients; None where not wanted."""
    weights, dtype, n_d = arguments.weights, arguments.memory.dtype, plan.n_d
    conv, dense = weights.attention.location_conv, weights.attention.location_dense
    d_a, d_d = gradients.gates_a.flatten(0, 1), gradients.gates_d.flatten(0, 1)  # [T B, 4n]
    states, hidden, contexts = kept.states, kept.outputs[:, :, :n_d], kept.outputs[:, :, n_d:]
    d_inputs = d_memory = d_processed = d_conv = d_dense = d_v = None
    if wanted.processed_memory or wanted.location_conv or wanted.location_dense or wanted.v:
        d_processed, d_location, d_v = _attention_sums(arguments, lengths, kept, gradients, plan)
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
        processed_memory=d_processed,
        attention_weight_ih=product(wanted.attention_weight_ih, d_a, arguments.decoder_inputs, contexts[:-1]),
        attention_weight_hh=product(wanted.attention_weight_hh, d_a, states[:-1]),
        attention_bias_ih=d_bias_a,
        attention_bias_hh=d_bias_a,
        query=product(wanted.query, gradients.queries.flatten(0, 1), states[1:]),
        location_conv=d_conv,
        location_dense=d_dense,
        v=d_v,
        decoder_weight_ih=product(wanted.decoder_weight_ih, d_d, states[1:], contexts[1:]),
        decoder_weight_hh=product(wanted.decoder_weight_hh, d_d, hidden[:-1]),
        decoder_bias_ih=d_bias_d,
        decoder_bias_hh=d_bias_d,
    )
