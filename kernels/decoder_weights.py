"""The weights of Tacotron 2's decoder, as its loops take them."""

from typing import NamedTuple

from torch import Tensor

from fastglow.errors import FastglowError


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


def recurrent_shapes(weights: RecurrentWeights, P: int, D: int) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Every tensor by name, with the shape it must have beside a prenet output of P and a memory of D numbers.

    Raises:
        FastglowError: an even number of location taps.
    """
    attention_rnn, attention, decoder_rnn = weights
    A, N, n = len(attention.query), attention_rnn.weight_hh.shape[1], decoder_rnn.weight_hh.shape[1]
    filters, _, taps = attention.location_conv.shape
    if taps % 2 == 0:
        raise FastglowError(f"location_conv has {taps} taps: use an odd number, which keeps the length")
    return {
        "attention_rnn.weight_ih": (attention_rnn.weight_ih, (4 * N, P + D)),
        "attention_rnn.weight_hh": (attention_rnn.weight_hh, (4 * N, N)),
        "attention_rnn.bias_ih": (attention_rnn.bias_ih, (4 * N,)),
        "attention_rnn.bias_hh": (attention_rnn.bias_hh, (4 * N,)),
        "attention.query": (attention.query, (A, N)),
        "attention.location_conv": (attention.location_conv, (filters, 2, taps)),
        "attention.location_dense": (attention.location_dense, (A, filters)),
        "attention.v": (attention.v, (1, A)),
        "decoder_rnn.weight_ih": (decoder_rnn.weight_ih, (4 * n, N + D)),
        "decoder_rnn.weight_hh": (decoder_rnn.weight_hh, (4 * n, n)),
        "decoder_rnn.bias_ih": (decoder_rnn.bias_ih, (4 * n,)),
        "decoder_rnn.bias_hh": (decoder_rnn.bias_hh, (4 * n,)),
    }


class OutputWeights(NamedTuple):
    """What makes frames of the decoder LSTM's output and the context, and the next step's input of a frame."""

    prenet: tuple[Tensor, ...]  # one [n_out, n_in] a layer
    projection: Tensor  # [n_frame, n + D]
    projection_bias: Tensor  # [n_frame]
    gate: Tensor  # [1, n + D]
    gate_bias: Tensor  # [1]
