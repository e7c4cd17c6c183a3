"""Counter-based random numbers inside kernels, the same as in `reference.philox`."""

import triton
import triton.language as tl


@triton.jit
def random_words(seed, stream, row, o_block):
    """The four words of a counter, for columns 4 o_block to 4 o_block + 3.

    Args:
        seed: int64; stream: integer below 2^32; row: position, an integer; o_block: integers.
            All broadcast against each other.
    """
    zero = o_block * 0
    row = row.to(tl.int64) + zero
    return tl.philox(
        seed, o_block.to(tl.uint32), row.to(tl.uint32), (row >> 32).to(tl.uint32), (stream + zero).to(tl.uint32)
    )


@triton.jit
def uniform_number(word):
    """A uniform float32 in [0, 1) from the upper 24 bits of a word."""
    return (word.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def uniform_noise(seed, stream, row, o_column):
    """`reference.philox.uniform_noise` at `row` and `o_column`, float32.

    Args:
        seed: int64; stream: integer below 2^32; row: position, an integer; o_column: integers.
            All broadcast against each other.
    """
    w0, w1, w2, w3 = random_words(seed, stream, row, o_column // 4)
    word = tl.where(o_column % 4 == 0, w0, tl.where(o_column % 4 == 1, w1, tl.where(o_column % 4 == 2, w2, w3)))
    return uniform_number(word)
