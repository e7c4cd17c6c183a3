"""The weights of Tacotron 2's decoder, as its loops take them."""

from typing import NamedTuple

from torch import Tensor


class LSTMWeights(NamedTuple):
    """Of an nn.LSTMCell with n units; gate order i, f, g, o."""

    weight_ih: Tensor  # [4n, n_in]
    weight_hh: Tensor  # [4n, n]
    bias_ih: Tensor  # [4n]
    bias_hh: Tensor  # [4n]


class AttentionWeights(NamedTuple):
    """Of `location_attention`."""

    query: Tensor  # [A, n_query]
    location_conv: Tensor  # [F, 2, k]
    location_dense: Tensor  # [A, F]
    v: Tensor  # [1, A]


class RecurrentWeights(NamedTuple):
    """What a step needs from the prenet's output to the decoder LSTM's state."""

    attention_rnn: LSTMWeights  # reads [prenet output, context]
    attention: AttentionWeights
    decoder_rnn: LSTMWeights  # reads [attention LSTM's output, context]


class OutputWeights(NamedTuple):
    """What makes frames of the decoder LSTM's output and the context, and the next step's input of a frame."""

    prenet: tuple[Tensor, ...]  # one [n_out, n_in] a layer
    projection: Tensor  # [n_frame, n + D]
    projection_bias: Tensor  # [n_frame]
    gate: Tensor  # [1, n + D]
    gate_bias: Tensor  # [1]
