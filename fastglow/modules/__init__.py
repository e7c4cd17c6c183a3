"""Drop-in building blocks: the reference's modules with the reference's parameter names."""

from .convolution import ConvNorm, LinearNorm, WeightNormConv1d
from .invertible_conv import InvertibleConv1x1
from .location_attention import LocationAttention
from .lstm_cell import LSTMCell
from .wn import WN

__all__ = [
    "WN",
    "ConvNorm",
    "InvertibleConv1x1",
    "LSTMCell",
    "LinearNorm",
    "LocationAttention",
    "WeightNormConv1d",
]
