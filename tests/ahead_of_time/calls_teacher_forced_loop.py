"""Calls of the teacher-forced decoder loop to compile ahead of time."""

from functools import partial

import torch

from fastglow.kernels import teacher_forced_loop
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, RecurrentWeights
from fastglow.kernels.teacher_forced_loop.replay import launch_replay

from .building import (
    ALTERNATING_PRODUCTS,
    BFLOAT16,
    make_case,
    meta_constant,
    meta_leaf,
    run_backward,
)

B, T, T_IN = 64, 1, 160  # every frame has the same launches


def _teacher_forced_loop(
    dtype: torch.dtype,
    n: int = 1024,
    D: int = 512,
    A: int = 128,
    P: int = 256,
    taps: int = 31,
    batch: int = B,
    p_dropout: float = 0.1,
    guided: bool = True,
) -> None:
    """`guided`: whether the alignments have a gradient."""

    def cell(n_in: int) -> LSTMWeights:
        return LSTMWeights(*(meta_leaf(dtype, *shape) for shape in ((4 * n, n_in), (4 * n, n), (4 * n,), (4 * n,))))

    attention = AttentionWeights(*(meta_leaf(dtype, *shape) for shape in ((A, n), (32, 2, taps), (A, 32), (1, A))))
    hidden_contexts, alignments = teacher_forced_loop(
        meta_leaf(dtype, T, batch, P),
        meta_leaf(dtype, batch, T_IN, D),
        meta_leaf(dtype, batch, T_IN, A),
        meta_constant(torch.int64, batch),
        RecurrentWeights(cell(P + D), attention, cell(n + D)),
        p_attention_dropout=p_dropout,
        p_decoder_dropout=p_dropout,
        seed=1,
    )
    run_backward(hidden_contexts, alignments if guided else None)


def _advance(dtype: torch.dtype) -> None:
    """The end of a graph of frames, which meta tensors cannot record."""
    launch_replay((), meta_constant(torch.int64, 3), meta_constant(torch.int64, 0, 2))


_case = partial(
    make_case,
    {
        "teacher_forced_lstm_fwd_kernel": "ROWS",
        "teacher_forced_query_fwd_kernel": "BM",
        "teacher_forced_energies_fwd_kernel": "BT",
        "teacher_forced_lstm_bwd_kernel": "QUERY_ROWS",
        "teacher_forced_product_bwd_kernel": "BB",
        "teacher_forced_energies_bwd_kernel": "BT",
        "teacher_forced_attention_sums_bwd_kernel": "BT BK",
    },
)

# Wide attention has other tile sizes.
WIDE = {arch: tuple(x for x in precisions if x != "float32") for arch, precisions in ALTERNATING_PRODUCTS.items()}

CASES = (
    _case(_teacher_forced_loop, "published", precisions=ALTERNATING_PRODUCTS, swept=ALTERNATING_PRODUCTS),
    _case(_teacher_forced_loop, "wide attention", A=256, precisions=WIDE, swept=WIDE),
    _case(_teacher_forced_loop, "odd sizes, one item", n=330, D=250, A=40, P=130, batch=1, p_dropout=0.0, guided=False),
    _case(_advance, "frames", precisions=BFLOAT16),
)
