"""Ahead-of-time cases of lstm_cell."""

from functools import partial

import torch

from fastglow.kernels import lstm_cell

from .building import (
    BFLOAT16,
    ONE,
    SWEPT_PRODUCTS,
    TF32,
    make_case,
    meta_constant,
    meta_leaf,
    run_backward,
)

RANDOM = {"p_dropout_h": 0.1, "p_dropout_c": 0.1, "p_zoneout_h": 0.1, "p_zoneout_c": 0.1}
EXPECTED = {"p_zoneout_h": 0.1, "p_zoneout_c": 0.1, "training": False}


def _lstm_cell(
    dtype: torch.dtype,
    B: int,
    n_in: int,
    n: int,
    bias: bool = True,
    outputs: str = "hc",
    trains: bool = True,
    seed_in_memory: bool = False,
    **options,
) -> None:
    """`outputs`: which of them get a gradient."""
    with torch.set_grad_enabled(trains):
        leaf = partial(meta_leaf, dtype)
        next_h, next_c = lstm_cell(
            leaf(B, n_in),
            leaf(B, n),
            leaf(B, n),
            leaf(4 * n, n_in),
            leaf(4 * n, n),
            *((leaf(4 * n), leaf(4 * n)) if bias else ()),
            seed=meta_constant(torch.int64) if seed_in_memory else 1234,
            **options,
        )
        run_backward(next_h if "h" in outputs else None, next_c if "c" in outputs else None)


_case = partial(make_case, {"lstm_cell_fwd_kernel": "ROWS"})

# Tacotron 2's decoder: the attention LSTM has 256 + 512 inputs, the decoder LSTM 1024 + 512.
CASES = (
    _case(_lstm_cell, "the decoder's, 128 items", 128, 1536, 1024, **SWEPT_PRODUCTS),
    _case(_lstm_cell, "the decoder's, one item, inference", 1, 768, 1024, trains=False, precisions=BFLOAT16),
    _case(_lstm_cell, "odd sizes, bare, gradient of h alone", 37, 83, 129, bias=False, outputs="h", precisions=TF32),
    _case(_lstm_cell, "dropout and zoneout", 128, 1536, 1024, precisions=ONE, **RANDOM),
    _case(
        _lstm_cell, "dropout, gradient of c alone", 16, 83, 129, outputs="c", p_dropout_c=0.1, seed_in_memory=True,
        precisions=ONE,
    ),
    _case(_lstm_cell, "zoneout without training", 128, 1536, 1024, precisions=ONE, **EXPECTED),
)  # fmt: skip
