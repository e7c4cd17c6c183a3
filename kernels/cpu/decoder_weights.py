"""The weights of Tacotron 2's decoder as the loop on a CPU reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..decoder_weights import LSTMWeights, OutputWeights, RecurrentWeights
from .int8_linear import int8_linear
from .linear import Linear, packed_linear


@dataclass(frozen=True)
class PackedDecoder:
    """The LSTMs' weights in the dtype that decides the loop's time, the rest in float32: it is small, and PyTorch
    multiplies small matrices faster in float32.

    What the energies' tanh is applied to is doubled: tanh(x) = 2 sigmoid(2x) - 1, and a sigmoid is five times as fast.

    Matrices are transposed views of [rows, columns] in memory: a product then sums along a row, in many partial sums,
    and rounds half as much as one that adds column after column.
    """

    attention_rnn: Linear  # [P + N + D] -> [4N]: prenet output, own state, context; gates i, f, o, g
    decoder_rnn: Linear  # [N + D + n] -> [4n]: attention LSTM's state, context, own state
    query: Tensor  # [N, A], doubled
    location: Tensor  # [2k, A], doubled: convolution and dense layer in one; row `2 tap + channel`
    v: Tensor  # [A], doubled
    prenet: tuple[Tensor, ...]  # [n_in, n_out] each
    output: Tensor  # [D + n, n_frame + 1]: projection and gate
    output_bias: Tensor  # [n_frame + 1]
    sizes: tuple[int, int, int, int]  # P, N, D, n

    @property
    def taps(self) -> int:
        """k, of the location convolution."""
        return len(self.location) // 2


@torch.no_grad()
def pack_decoder(
    recurrent: RecurrentWeights, output: OutputWeights, dtype: torch.dtype, lstm_weights: torch.dtype | None = None
) -> PackedDecoder:
    """The weights that the loop reads; keep them until a parameter changes.

    Args:
        recurrent, output: the model's weights.
        dtype: of the computation, float32 or bfloat16.
        lstm_weights: of the LSTMs' weights: float32, bfloat16 or int8; default: `dtype`.
    """
    lstm_weights = lstm_weights or dtype
    attention_rnn, attention, decoder_rnn = recurrent
    P, N, n = len(output.prenet[-1]), attention_rnn.weight_hh.shape[1], decoder_rnn.weight_hh.shape[1]
    D = attention_rnn.weight_ih.shape[1] - P
    prenet_ih, context_ih = attention_rnn.weight_ih.split((P, D), dim=1)
    projection = torch.cat((output.projection, output.gate)).float()  # reads [state, context]
    location = attention.location_dense.float() @ attention.location_conv.float().flatten(1)  # [A, 2k]
    taps = attention.location_conv.shape[2]
    return PackedDecoder(
        attention_rnn=_lstm(attention_rnn, (prenet_ih, attention_rnn.weight_hh, context_ih), lstm_weights),
        decoder_rnn=_lstm(decoder_rnn, (decoder_rnn.weight_ih, decoder_rnn.weight_hh), lstm_weights),
        query=(2 * attention.query.float()).t(),
        location=(2 * location.view(-1, 2, taps).transpose(1, 2).flatten(1)).t(),
        v=2 * attention.v.float().flatten(),
        prenet=tuple(weight.float().t() for weight in output.prenet),
        output=torch.cat((projection[:, n:], projection[:, :n]), dim=1).t(),
        output_bias=torch.cat((output.projection_bias, output.gate_bias)).float(),
        sizes=(P, N, D, n),
    )


def _lstm(weights: LSTMWeights, columns: tuple[Tensor, ...], dtype: torch.dtype) -> Linear:
    i, f, g, o = torch.arange(len(weights.bias_ih), device="cpu").chunk(4)
    order = torch.cat((i, f, o, g))  # the sigmoids are neighbours
    weight, bias = torch.cat(columns, dim=1)[order], (weights.bias_ih.float() + weights.bias_hh.float())[order]
    return int8_linear(weight, bias) if dtype == torch.int8 else packed_linear(weight.to(dtype), bias)
