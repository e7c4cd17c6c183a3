"""The launches of the decode loop that are compiled ahead of time."""

from functools import partial

import torch

from fastglow.kernels.decode_loop import PERSISTENT_ITEMS, fold_decoder
from fastglow.kernels.decode_loop.decoding import Decoding
from fastglow.kernels.decode_loop.kernels import HAS_CONDITION
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights

from .building import BFLOAT16, SWEPT_PRODUCTS, make_case, meta_constant

PUBLISHED = {"n_frame": 80, "P": 256, "D": 512, "N": 1024, "n": 1024, "A": 128, "F": 32, "k": 31}
ODD = {"n_frame": 15, "P": 40, "D": 51, "N": 100, "n": 129, "A": 33, "F": 5, "k": 7}
N_PROGRAMS = 132


@torch.no_grad()
def _decode_loop(
    dtype: torch.dtype, B: int, n_frame: int, P: int, D: int, N: int, n: int, A: int, F: int, k: int
) -> None:
    """The launches only: the host side of `decode_loop` reads results, which meta tensors do not have."""
    x = partial(meta_constant, dtype)
    recurrent = RecurrentWeights(
        LSTMWeights(x(4 * N, P + D), x(4 * N, N), x(4 * N), x(4 * N)),
        AttentionWeights(x(A, N), x(F, 2, k), x(A, F), x(1, A)),
        LSTMWeights(x(4 * n, N + D), x(4 * n, n), x(4 * n), x(4 * n)),
    )
    output = OutputWeights((x(P, n_frame), x(P, P)), x(n_frame, n + D), x(n_frame), x(1, n + D), x(1))
    decoding = Decoding(fold_decoder(recurrent, output), B, 128, 2000, 0.5, 0.5)
    decoding.begin(x(B, 100, D), x(B, 100, A), meta_constant(torch.int64, B), meta_constant(torch.int64, B))
    decoding.run_frames(1)
    if B <= PERSISTENT_ITEMS and HAS_CONDITION:
        decoding.run_loop(N_PROGRAMS, launch_cooperative_grid=True)


# All products have fewer than 64 rows.
_case = partial(make_case, {"decode_phase_kernel": "BT", "decode_loop_kernel": "BT"})

CASES = (
    _case(_decode_loop, "one item", 1, **SWEPT_PRODUCTS, **PUBLISHED),
    _case(_decode_loop, "64 items", 64, precisions=BFLOAT16, **PUBLISHED),
    _case(_decode_loop, "odd sizes", 3, **ODD),
)
