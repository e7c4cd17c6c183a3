"""Tacotron 2's prenet: what its kernels share."""

import triton
import triton.language as tl


@triton.jit
def uniform_noise(seed, stream, row, o_column):
    """The numbers of `reference.philox.uniform_noise` at `row` and `o_column`, float32.

    Args:
        seed: int64; stream: integer below 2^32; row: the position, an integer; o_column: the numbers' columns.
        All broadcast against each other.
    """
    zero = o_column * 0
    row = row.to(tl.int64) + zero
    w0, w1, w2, w3 = tl.philox(
        seed, (o_column // 4).to(tl.uint32), row.to(tl.uint32), (row >> 32).to(tl.uint32), (stream + zero).to(tl.uint32)
    )
    word = tl.where(o_column % 4 == 0, w0, tl.where(o_column % 4 == 1, w1, tl.where(o_column % 4 == 2, w2, w3)))
    return (word.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
