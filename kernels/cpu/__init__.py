"""Inference on a CPU, in float32 or bfloat16: the models' hot paths on PyTorch's packed products and its vector
operations, without a compiler.

Other calls on a CPU, with gradients or in other dtypes, run the PyTorch references.
"""

from .decoder_weights import PackedDecoder, pack_decoder
from .processor import fast_dtype

__all__ = ["PackedDecoder", "fast_dtype", "pack_decoder"]
