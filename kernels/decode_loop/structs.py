"""Struct arguments of the kernels: pointers, sizes and compile-time constants.

B is the batch size; the other dimensions are fields of `Sizes`. Layout: kernels/README.md.
"""

from typing import Any, NamedTuple


class LSTMPointers(NamedTuple):
    """One of the two LSTMs, of n units."""

    weight_ih: Any  # [4n, n_in]
    weight_hh: Any  # [4n, n]
    bias: Any  # [4n] float32
    gates: Any  # [n_tiles * 4 BU, B] float32: partial sums, row 4 u + q for gate q of unit u
    h: Any  # [B, n]
    c: Any  # [B, n] float32
    n: Any


class AttentionPointers(NamedTuple):
    memory: Any  # [B, T, D]
    processed_memory: Any  # [B, T, A]
    lengths: Any  # [B] int32
    query_weight: Any  # [A, N]
    location: Any  # [A, 2k and padding]
    v: Any  # [A]
    query: Any  # [B, n_tiles, A] float32: partial sums, one per tile of the attention LSTM
    energies: Any  # [B, T] float32
    cumulative: Any  # [B, T] float32
    alignments: Any  # [B, max_steps + 1, T] float32; row t + 1 has frame t's weights, row 0 zeros
    context: Any  # [B, D]


class OutputPointers(NamedTuple):
    """The projection, the gate and the prenet."""

    weight: Any  # [n_frame + 1 + P1, n + D]: rows of the frame, the gate and the prenet's folded first layer
    bias: Any  # [n_frame + 1 + P1] float32
    prenet: Any  # [P, P1]: the second layer
    seeds: Any  # [B] int64
    x1: Any  # [B, P1]
    x2: Any  # [B, P]
    frames: Any  # [B, max_steps, n_frame]
    steps: Any  # [B] int32
    fired: Any  # [B] int32


class RunningPointers(NamedTuple):
    """The items that still run, in order: one list for even frames and one for odd frames."""

    items: Any  # [2, B] int32
    n: Any  # [2] int32


class Sizes(NamedTuple):
    T: Any
    D: Any
    A: Any
    P1: Any  # units of the prenet's first layer
    P: Any  # units of its second layer
    n_frame: Any
    max_steps: Any
    p_dropout: Any  # float
    scale: Any  # 1 / (1 - p_dropout), float
    gate_threshold: Any  # float


class Decoder(NamedTuple):
    attention_rnn: LSTMPointers
    attention: AttentionPointers
    decoder_rnn: LSTMPointers
    output: OutputPointers
    running: RunningPointers
    sizes: Sizes


class Blocks(NamedTuple):
    """Compile-time constants."""

    BU: Any  # units of an LSTM
    BR: Any  # rows of another product
    BK: Any  # depth of a product
    STAGES: Any  # of a product's pipeline
    BT: Any  # positions of an attention step
    BL: Any  # elements of a location window
    BD: Any  # columns of a context
    BS: Any  # positions of a softmax
    BB: Any  # items
    BA: Any  # attention dimension, padded
    BATCH: Any  # all items, padded
    TAPS: Any  # k
    ONE_BLOCK: Any  # whether the batch is at most BB items
    EVEN_P1: Any  # whether P1 is a multiple of BK, and so on
    EVEN_P: Any
    EVEN_D: Any
    EVEN_NA: Any  # of the attention LSTM's units
    EVEN_ND: Any  # of the decoder LSTM's units
    PRECISION: Any  # `input_precision` of the products
    PREFETCH: Any  # blocks of weights that a program loads before it waits at a barrier


# The structs below are built inside the kernels.


class Product(NamedTuple):
    """W x^T, a part of an LSTM's gates."""

    p_w: Any  # [4n, K]
    s_w: Any  # distance between rows of W
    p_x: Any  # [B, K]
    K: Any
    EVEN_K: Any  # whether K is a multiple of BK, a compile-time constant


class Frame(NamedTuple):
    """A frame's index, and the items that run in it."""

    t: Any
    p_items: Any  # their list
    n_items: Any
    o_first: Any  # [BB], the first block of the list
    m_first: Any  # [BB], which of them exist
    B: Any
