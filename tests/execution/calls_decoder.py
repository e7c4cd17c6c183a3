"""Calls of the operations of Tacotron 2's decoder."""

from functools import partial

import torch

from fastglow.kernels import (
    AttentionWeights,
    LSTMWeights,
    OutputWeights,
    RecurrentWeights,
    decode_loop,
    location_attention,
    lstm_cell,
    prenet,
    teacher_forced_loop,
)
from fastglow.kernels.decode_loop import decoding
from fastglow.kernels.teacher_forced_loop import gradients

from .calls import FLOAT, HALF, Case, Inputs, both, config
from .order import Results

MASKS = {"p_dropout_h": 0.2, "p_dropout_c": 0.2, "p_zoneout_h": 0.3, "p_zoneout_c": 0.3}


def _lstm_cell(inputs: Inputs, B: int, bias: bool, **options) -> Results:
    n_in, n = 7, 10
    return inputs.results(
        *lstm_cell(
            inputs.leaf(B, n_in),
            inputs.leaf(B, n),
            inputs.leaf(B, n),
            inputs.leaf(4 * n, n_in),
            inputs.leaf(4 * n, n),
            *((inputs.leaf(4 * n), inputs.leaf(4 * n)) if bias else ()),
            seed=5,
            **options,
        )
    )


def _location_attention(inputs: Inputs, mask: bool = False, v_bias: bool = False, **options) -> Results:
    B, T, A, D, n_query, filters, taps = 3, 19, 5, 20, 6, 3, 5
    return inputs.results(
        *location_attention(
            inputs.leaf(B, n_query),
            inputs.leaf(B, T, D),
            inputs.leaf(B, T, A),
            inputs.leaf(B, 2, T),
            inputs.leaf(A, n_query),
            inputs.leaf(filters, 2, taps),
            inputs.leaf(A, filters),
            inputs.leaf(1, A),
            inputs.place(torch.arange(T) % 4 == torch.arange(B)[:, None]) if mask else None,
            lengths=inputs.integers(T, 0, 7),
            v_bias=inputs.leaf(1) if v_bias else None,
            **options,
        )
    )


def _prenet(inputs: Inputs, *widths: int, noise: bool = False) -> Results:
    B, steps, n_in = 2, 5, 6
    weights = [inputs.leaf(n, n_below) for n_below, n in zip((n_in, *widths), widths, strict=False)]
    if noise:
        drawn = inputs.place(torch.rand(len(widths), B, steps, widths[-1]))
        return inputs.results(prenet(inputs.leaf(B, steps, n_in), weights, 0.4, drawn))
    return inputs.results(prenet(inputs.leaf(B, steps, n_in), weights, 0.4, seeds=inputs.integers(3, 8), start=2))


def _recurrent(inputs: Inputs, trains: bool, P: int, D: int, A: int, N: int, n: int) -> RecurrentWeights:
    draw = inputs.leaf if trains else inputs.constant

    def cell(n_in: int, n: int) -> LSTMWeights:
        return LSTMWeights(draw(4 * n, n_in, scale=0.3), draw(4 * n, n, scale=0.3), draw(4 * n), draw(4 * n))

    attention = AttentionWeights(draw(A, N), draw(3, 2, 5), draw(A, 3), draw(1, A))
    return RecurrentWeights(cell(P + D, N), attention, cell(N + D, n))


def _teacher_forced_loop(inputs: Inputs, p_dropout: float, guided: bool = True) -> Results:
    T, B, T_in, P, D, A, N, n = 2, 3, 19, 4, 20, 5, 10, 7
    hidden_contexts, alignments = teacher_forced_loop(
        inputs.leaf(T, B, P),
        inputs.leaf(B, T_in, D),
        inputs.leaf(B, T_in, A),
        inputs.integers(T_in, 7, 1),
        _recurrent(inputs, True, P, D, A, N, n),
        p_attention_dropout=p_dropout,
        p_decoder_dropout=p_dropout,
        seed=5,
    )
    return inputs.results(hidden_contexts, alignments if guided else alignments.detach())


@torch.no_grad()
def _decode_loop(inputs: Inputs, method: str, *lengths: int) -> Results:
    B, T, P1, P, D, A, N, n, n_frame = len(lengths), max(lengths), 6, 7, 20, 5, 10, 9, 4
    draw = inputs.constant
    result = decode_loop(
        draw(B, T, D),
        draw(B, T, A),
        inputs.integers(*lengths),
        inputs.integers(*range(3, 3 + B)),
        _recurrent(inputs, False, P, D, A, N, n),
        OutputWeights(
            (draw(P1, n_frame), draw(P, P1)),
            draw(n_frame, n + D, scale=0.3),
            draw(n_frame),
            draw(1, n + D, scale=0.3),
            draw(1),
        ),
        p_prenet_dropout=0.5,
        gate_threshold=0.5,
        max_steps=3,
        early_stopping=False,
        method=method,
    )
    return inputs.results(*result)


_cell = partial(Case, configs={"lstm_cell_fwd": config(BU=4, BB=4, BK=8), "lstm_cell_bwd": config(BU=8)})
_one_item = partial(Case, configs={"lstm_cell_fwd": config(BU=4, BB=1, BK=8), "lstm_cell_bwd": config(BU=8)})
_attention = partial(Case, configs=both("location_attention", BT=16, BK=16, BR=16, BD=16))
_layers = partial(Case, configs=both("prenet", BR=4, BN=8, BK=4))
_training = partial(
    Case,
    configs={
        "teacher_forced_lstm_fwd": config(BU=4, BB=2, BK=8),
        "teacher_forced_query_fwd": config(BM=4, BB=2, BK=4),
        "teacher_forced_energies_fwd": config(BT=4, BK=16, CHUNKS=2),
        "teacher_forced_context_fwd": config(BR=8, BD=8),
        "teacher_forced_lstm_bwd": config(BU=4, BB=2, BK=4),
        "teacher_forced_product_bwd": config(BB=2, BN=16, BK=8),
        "teacher_forced_context_bwd": config(BT=4, BK=8, BD=8, CHUNKS=2),
        "teacher_forced_energies_bwd": config(BT=4, BK=8, CHUNKS=2),
        "teacher_forced_attention_sums_bwd": config(BT=4, BK=8),
    },
    constants=(
        (gradients, "SMALLEST_DEPTH", 16),
        (gradients, "SUMS_PROGRAMS", 32),  # chunks, blocks of a window and segments of frames
        (gradients, "SMALLEST_SEGMENT", 1),
    ),
)
_decoding = partial(
    Case,
    configs={"decode_phase": config(BU=4, BR=8, BK=8, STAGES=1, BT=16, BL=16, BD=16, BS=16)},
    constants=((decoding, "FRAMES_PER_GRAPH", 1),),
)
_decoding_many = partial(
    _decoding, configs={"decode_phase": config(BU=8, BR=16, BK=8, STAGES=1, BT=64, BL=16, BD=32, BS=64)}
)
_prefetching = partial(
    _decoding, configs=_decoding.keywords["configs"] | {"decode_loop": {"PREFETCH": 1, "num_warps": 4}}
)

CASES = (
    _cell("lstm_cell, dropout and zoneout", partial(_lstm_cell, B=6, bias=True, **MASKS)),
    _cell("lstm_cell, bare", partial(_lstm_cell, B=6, bias=False)),
    _one_item("lstm_cell, an item per program", partial(_lstm_cell, B=3, bias=True, p_zoneout_c=0.3, training=False)),
    _attention("location_attention", _location_attention),
    _attention(
        "location_attention, sigmoids",
        partial(_location_attention, mask=True, v_bias=True, sharpening=2.0, normalization="sigmoid"),
    ),
    _layers("prenet, three layers", lambda inputs: _prenet(inputs, 9, 10, 5)),
    _layers("prenet, noise given", lambda inputs: _prenet(inputs, 9, 9, noise=True)),
    _training("teacher_forced_loop", partial(_teacher_forced_loop, p_dropout=0.0), dtypes=FLOAT),
    _training("teacher_forced_loop, dropout", partial(_teacher_forced_loop, p_dropout=0.2, guided=False), dtypes=HALF),
    _decoding("decode_loop, steps", lambda inputs: _decode_loop(inputs, "steps", 19, 0, 7)),
    _decoding_many(
        "decode_loop, steps, two blocks of items",
        lambda inputs: _decode_loop(inputs, "steps", *[3, 0, 7] * 6),
        dtypes=FLOAT,
    ),
    _decoding("decode_loop, persistent", lambda inputs: _decode_loop(inputs, "persistent", 19, 0, 7)),
    _prefetching("decode_loop, persistent, prefetching", lambda inputs: _decode_loop(inputs, "persistent", 19, 0, 7)),
)
