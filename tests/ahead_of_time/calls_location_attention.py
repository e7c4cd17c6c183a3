"""Ahead-of-time cases of location attention."""

from functools import partial

import torch

from fastglow.kernels import location_attention

from .building import (
    ALTERNATING_PRODUCTS,
    BFLOAT16,
    ONE,
    SWEPT_PRODUCTS,
    make_case,
    meta_constant,
    meta_leaf,
    run_backward,
)

B, QUERY = 16, 1024


def _location_attention(
    dtype: torch.dtype,
    A: int = 128,
    D: int = 512,
    T: int = 128,
    filters: int = 32,
    taps: int = 31,
    lengths: bool = True,
    mask: bool = False,
    v_bias: bool = False,
    trains: bool = True,
    frozen_weights: bool = False,
    weights_reached: bool = True,
    wide_inputs: bool = False,
    **options,
) -> None:
    """
    Args:
        frozen_weights: the previous and the cumulative weights need no gradient.
        weights_reached: the output weights get a gradient.
        wide_inputs: the previous and the cumulative weights are float32, as in loops.
    """
    with torch.set_grad_enabled(trains):
        leaf = partial(meta_leaf, dtype)
        cat = (meta_constant if frozen_weights else meta_leaf)(torch.float32 if wide_inputs else dtype, B, 2, T)
        context, weights = location_attention(
            leaf(B, QUERY),
            leaf(B, T, D),
            leaf(B, T, A),
            cat,
            leaf(A, QUERY),
            leaf(filters, 2, taps),
            leaf(A, filters),
            leaf(1, A),
            meta_constant(torch.bool, B, T) if mask else None,
            lengths=meta_constant(torch.int64, B) if lengths else None,
            v_bias=leaf(1) if v_bias else None,
            **options,
        )
        run_backward(context, weights if weights_reached else None)


# Kernels on tensor cores, and the constant that holds the rows of their products.
PRODUCTS = {"location_attention_fwd_kernel": "BT", "location_attention_bwd_kernel": "BT"}
_case = partial(make_case, PRODUCTS)

CASES = (
    _case(_location_attention, "Tacotron 2", **SWEPT_PRODUCTS),
    _case(_location_attention, "wide", A=256, **SWEPT_PRODUCTS),
    _case(_location_attention, "ESPnet", A=512, v_bias=True, sharpening=2.0, precisions=BFLOAT16),
    _case(
        _location_attention,
        "coqui",
        mask=True,
        lengths=False,
        v_bias=True,
        normalization="sigmoid",
        wide_inputs=True,
        precisions=ALTERNATING_PRODUCTS,
    ),
    _case(_location_attention, "first step", frozen_weights=True, weights_reached=False, lengths=False),
    _case(_location_attention, "odd sizes", A=77, D=333, T=99, filters=5, taps=101, trains=False, precisions=ONE),
)
