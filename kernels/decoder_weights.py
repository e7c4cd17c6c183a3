"""The weights of Tacotron 2's decoder, as `decode_loop` and `teacher_forced_loop` take them."""

from typing import NamedTuple

from torch import Tensor

from fastglow.errors import FastglowError


class LSTMWeights(NamedTuple):
    """The weights of an nn.LSTMCell with n units; gate order i, f, g, o."""

    weight_ih: Tensor  # [4n, n_in]
    weight_hh: Tensor  # [4n, n]
    bias_ih: Tensor  # [4n]
    bias_hh: Tensor  # [4n]


class AttentionWeights(NamedTuple):
    """The weights of `location_attention`."""

    query: Tensor  # [A, n_query]
    location_conv: Tensor  # [F, 2, k]
    location_dense: Tensor  # [A, F]
    v: Tensor  # [1, A]


class RecurrentWeights(NamedTuple):
    """The weights of a step, from the prenet's output to the decoder LSTM's state."""

    attention_rnn: LSTMWeights  # reads [prenet output, context]
    attention: AttentionWeights
    decoder_rnn: LSTMWeights  # reads [attention LSTM's output, context]


def recurrent_shapes(weights: RecurrentWeights, P: int, D: int) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """Every tensor by name, with the shape it must have for P prenet outputs and D memory channels.

    Raises:
        FastglowError: an even number of location taps.
    """
    attention_rnn, attention, decoder_rnn = weights
    A, N, n = len(attention.query), attention_rnn.weight_hh.shape[1], decoder_rnn.weight_hh.shape[1]
    filters, _, taps = attention.location_conv.shape
    if taps % 2 == 0:
        raise FastglowError(f"location_conv has {taps} taps: use an odd number, to keep the length")
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
    """The projection and the gate, which read the decoder LSTM's output and the context, and the prenet."""

    prenet: tuple[Tensor, ...]  # [n_out, n_in] per layer
    projection: Tensor  # [n_frame, n + D]
    projection_bias: Tensor  # [n_frame]
    gate: Tensor  # [1, n + D]
    gate_bias: Tensor  # [1]
