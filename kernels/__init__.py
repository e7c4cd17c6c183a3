"""The operations that Tacotron 2 and WaveGlow spend their time in, one function each.

Every function takes and returns plain tensors and is differentiable. What is here is the PyTorch
reference of each operation (`fastglow.kernels.reference`), which defines its numbers.
"""

from .lstm_loop import LSTMLoop
from .reference.affine_coupling import affine_coupling, affine_coupling_inverse
from .reference.gated_activation import gated_activation
from .reference.invertible_conv1x1 import invertible_conv1x1, invertible_conv1x1_inverse
from .reference.location_attention import location_attention
from .reference.lstm_cell import lstm_cell
from .reference.philox import normal_noise, uniform_noise
from .reference.prenet import prenet
from .reference.wavenet_layer import wavenet_layer
from .reference.weight_norm import weight_norm

__all__ = [
    "LSTMLoop",
    "affine_coupling",
    "affine_coupling_inverse",
    "gated_activation",
    "invertible_conv1x1",
    "invertible_conv1x1_inverse",
    "location_attention",
    "lstm_cell",
    "normal_noise",
    "prenet",
    "uniform_noise",
    "wavenet_layer",
    "weight_norm",
]
