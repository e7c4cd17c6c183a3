"""The decoder's weights as the kernels read them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastglow.errors import FastglowError

from .. import backend
from ..decoder_weights import OutputWeights, RecurrentWeights
from ..location_attention import fold_location


@dataclass(frozen=True)
class FoldedDecoder:
    """One decoder's weights: in the dtype of the computation, biases in float32."""

    attention_ih: Tensor  # [4N, P + D]
    attention_hh: Tensor  # [4N, N]
    attention_bias: Tensor  # [4N]
    query: Tensor  # [A, N]
    location: Tensor  # [A, 2k and padding]: convolution and dense layer in one
    v: Tensor  # [A]
    decoder_ih: Tensor  # [4n, N + D]
    decoder_hh: Tensor  # [4n, n]
    decoder_bias: Tensor  # [4n]
    output: Tensor  # [n_frame + 1 + P1, n + D]: projection, gate, and the prenet's first layer times the projection
    output_bias: Tensor  # [n_frame + 1 + P1]
    prenet: Tensor  # [P, P1]: the second layer
    n_frame: int
    taps: int  # k
    idle_decodings: dict = field(default_factory=dict, compare=False, repr=False)
    """`Decoding`s with these weights that no call uses, with their sizes and options, the most recently used last."""

    @property
    def dtype(self) -> torch.dtype:
        return self.output.dtype


@torch.no_grad()
def fold_decoder(recurrent: RecurrentWeights, output: OutputWeights, dtype: torch.dtype | None = None) -> FoldedDecoder:
    """The weights that `decode_loop`'s kernels read; keep them until a parameter changes.

    Args:
        recurrent, output: the model's weights.
        dtype: of the computation; default: the dtype of the weights.

    Raises:
        FastglowError: the prenet does not have two layers.
    """
    if len(output.prenet) != 2:
        raise FastglowError(f"fold_decoder: the prenet has {len(output.prenet)} layers, must have 2")
    dtype = output.projection.dtype if dtype is None else dtype
    wide = torch.promote_types(dtype, torch.float32)
    first, second = (weight.to(wide) for weight in output.prenet)
    projection, projection_bias = output.projection.to(wide), output.projection_bias.to(wide)
    attention_rnn, attention, decoder_rnn = recurrent
    with backend.without_autocast(projection):
        rows = (projection, output.gate.to(wide), first @ projection)
        biases = (projection_bias, output.gate_bias.to(wide), first @ projection_bias)

    def in_dtype(weight: Tensor) -> Tensor:
        return weight.to(dtype).contiguous()

    return FoldedDecoder(
        attention_ih=in_dtype(attention_rnn.weight_ih),
        attention_hh=in_dtype(attention_rnn.weight_hh),
        attention_bias=attention_rnn.bias_ih.to(wide) + attention_rnn.bias_hh.to(wide),
        query=in_dtype(attention.query),
        location=fold_location(attention.location_conv, attention.location_dense, dtype),
        v=in_dtype(attention.v.flatten()),
        decoder_ih=in_dtype(decoder_rnn.weight_ih),
        decoder_hh=in_dtype(decoder_rnn.weight_hh),
        decoder_bias=decoder_rnn.bias_ih.to(wide) + decoder_rnn.bias_hh.to(wide),
        output=torch.cat(rows).to(dtype),
        output_bias=torch.cat(biases),
        prenet=in_dtype(second),
        n_frame=len(projection),
        taps=attention.location_conv.shape[2],
    )
