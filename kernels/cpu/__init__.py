"""The models' hot paths on a CPU, in float32 or bfloat16: inference, and WN in training, in PyTorch's matrix products
and vector operations, without a compiler.

Other calls on a CPU run the PyTorch references.
"""

from .decoder_weights import PackedDecoder, pack_decoder
from .processor import fast_dtype

__all__ = ["PackedDecoder", "fast_dtype", "pack_decoder"]
