"""What the processor is fast at."""

import platform
from functools import cache
from operator import attrgetter

import torch

OPERATIONS = (
    "_reorder_linear_weight.default",
    "_linear_pointwise.default",
    "_linear_pointwise.binary",
    "_reorder_convolution_weight.default",
    "_convolution_pointwise_.binary",
    "_is_mkldnn_bf16_supported.default",
)
"""On packed weights, in `torch.ops.mkldnn`. They are PyTorch's private ones, which a version may lack."""


def has_bfloat16() -> bool:
    """Whether matrix products in bfloat16 are faster than in float32.

    The processor has instructions for them (AVX512_BF16, AMX, on Arm BF16 beside SVE of 256 bits), and
    ATEN_CPU_CAPABILITY does not keep PyTorch from vector instructions.
    Elsewhere oneDNN may emulate bfloat16, which is slower than float32.
    """
    if not has_onednn() or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2"):
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return _onednn_takes_bfloat16()


def fast_dtype() -> torch.dtype:
    """bfloat16 if the processor has instructions for it, else float32."""
    return torch.bfloat16 if has_bfloat16() else torch.float32


def has_onednn() -> bool:
    """Whether PyTorch was built with oneDNN, whose products take weights in blocks that were packed before."""
    return torch.backends.mkldnn.is_available()


def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this dtype here, and this PyTorch has the operations."""
    return has_onednn() and has_operations() and (dtype == torch.float32 or _onednn_takes_bfloat16())


@cache
def has_operations() -> bool:
    """Whether this PyTorch has all of `OPERATIONS`."""
    try:
        attrgetter(*OPERATIONS)(torch.ops.mkldnn)
    except AttributeError:
        return False
    return True


def _onednn_takes_bfloat16() -> bool:
    """On x86 also where it emulates it."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
