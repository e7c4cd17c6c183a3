"""The operations in which Tacotron 2 and WaveGlow spend their time, one function each.

Every function takes and returns plain tensors, and is differentiable unless it is for inference only. `backend` chooses
between Triton kernels and PyTorch references (`fastglow.kernels.reference`), which define the results.
"""

from . import backend
from .affine_coupling import affine_coupling, affine_coupling_inverse, flow_step_inverse
from .decode_loop import (
    DecodePiece,
    DecodeResult,
    FoldedDecoder,
    PackedDecoder,
    decode_loop,
    decode_pieces,
    fold_decoder,
    pack_decoder,
)
from .decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from .gated_activation import gated_activation
from .invertible_conv1x1 import invertible_conv1x1, invertible_conv1x1_factors, invertible_conv1x1_inverse
from .location_attention import location_attention
from .lstm_cell import lstm_cell
from .prenet import prenet
from .reference.philox import normal_noise, uniform_noise
from .teacher_forced_loop import teacher_forced_loop
from .wavenet_layer import wavenet_layer
from .weight_norm import weight_norm, weight_norm_packed

__all__ = [
    "AttentionWeights",
    "DecodePiece",
    "DecodeResult",
    "FoldedDecoder",
    "LSTMWeights",
    "OutputWeights",
    "PackedDecoder",
    "RecurrentWeights",
    "affine_coupling",
    "affine_coupling_inverse",
    "backend",
    "decode_loop",
    "decode_pieces",
    "flow_step_inverse",
    "fold_decoder",
    "gated_activation",
    "invertible_conv1x1",
    "invertible_conv1x1_factors",
    "invertible_conv1x1_inverse",
    "location_attention",
    "lstm_cell",
    "normal_noise",
    "pack_decoder",
    "prenet",
    "teacher_forced_loop",
    "uniform_noise",
    "wavenet_layer",
    "weight_norm",
    "weight_norm_packed",
]
