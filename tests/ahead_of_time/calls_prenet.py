"""Calls of the prenet to compile ahead of time."""

from functools import partial

import torch

from fastglow.kernels import prenet

from .building import BFLOAT16, SWEPT_PRODUCTS, TF32, make_case, meta_constant, meta_leaf, run_backward

B, STEPS = 64, 800


def _prenet(
    dtype: torch.dtype,
    n_in: int,
    *widths: int,
    dropout: str = "seeds",  # or "noise", "none"
    trains: tuple[str, ...] = ("weights",),  # or "x"
    strided: bool = False,
) -> None:
    shapes = [(n_out, n) for n, n_out in zip((n_in, *widths[:-1]), widths, strict=True)]
    weights = [(meta_leaf if "weights" in trains else meta_constant)(dtype, *shape) for shape in shapes]
    x = (meta_leaf if "x" in trains else meta_constant)(dtype, B, STEPS, n_in)
    if strided:
        x = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(x.requires_grad)
    options = {
        "noise": {"noise": meta_constant(torch.float32, len(widths), B, STEPS, widths[-1])},
        "seeds": {"seeds": meta_constant(torch.int64, B), "start": 5},
        "none": {},
    }
    run_backward(prenet(x, weights, 0.0 if dropout == "none" else 0.5, **options[dropout]))


_case = partial(make_case, {"prenet_fwd_kernel": "BR", "prenet_bwd_kernel": "BR"}, _prenet)

CASES = (
    _case("published", 80, 256, 256, **SWEPT_PRODUCTS),
    _case("gradient of x, noise given", 80, 256, 256, dropout="noise", trains=("x",), precisions=BFLOAT16),
    _case("odd widths, all gradients, strided", 77, 130, 33, trains=("x", "weights"), strided=True, precisions=TF32),
    _case("one layer, no dropout", 80, 256, dropout="none", trains=("x", "weights"), precisions=BFLOAT16),
)
