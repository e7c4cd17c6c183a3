"""Calls of WaveGlow's operations, to be compiled ahead of time."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

from fastglow.kernels import (
    affine_coupling,
    affine_coupling_inverse,
    flow_step_inverse,
    gated_activation,
    invertible_conv1x1,
    invertible_conv1x1_factors,
    invertible_conv1x1_inverse,
    wavenet_layer,
    weight_norm,
    weight_norm_packed,
)
from fastglow.kernels.launch import Config, use_config
from fastglow.kernels.wavenet_layer.forward import FUSED

from .building import (
    BFLOAT16,
    DTYPES,
    SWEPT,
    SWEPT_FLOAT32,
    SWEPT_PRODUCTS,
    TF32,
    in_channels_last,
    make_case,
    meta_constant,
    meta_leaf,
    run_backward,
)

# Two training segments of 16000 samples in groups of 8. Triton specialises kernels for sizes divisible by 16.
B, T = 2, 2000
ODD_T = 1997
LONG = 27520  # fills the GPU with the largest tiles


def _gated_activation(
    dtype: torch.dtype,
    b: tuple[int, int, int] | None = None,
    bias: bool = False,
    T: int = T,
    frozen: Sequence[str] = (),
    seed_in_memory: bool = False,
    **options,
) -> None:
    """`frozen`: which of a, b and bias need no gradient."""
    shapes = {
        "a": (B, T, 256) if options.get("channels_last") else (B, 256, T),
        "b": b,
        "bias": (256,) if bias else None,
    }
    inputs = {
        name: None if shape is None else (meta_constant if name in frozen else meta_leaf)(dtype, *shape)
        for name, shape in shapes.items()
    }
    seed = meta_constant(torch.int64) if seed_in_memory else 1234
    run_backward(gated_activation(**inputs, seed=seed, **options))


def _affine_coupling(
    dtype: torch.dtype,
    inverse: bool = False,
    log_s: bool = True,
    log_s_sum: bool = True,
    n: int = 4,
    T: int = T,
    channels_last: bool = False,
) -> None:
    """`log_s`, `log_s_sum`: whether they get a gradient."""
    x, b_log_s = meta_leaf(dtype, B, n, T), meta_leaf(dtype, B, 2 * n, T)
    if channels_last:
        x, b_log_s = in_channels_last(x), in_channels_last(b_log_s)
    if inverse:
        run_backward(affine_coupling_inverse(x, b_log_s))
        return
    y, b_of_log_s, *total = affine_coupling(x, b_log_s, return_log_s_sum=log_s_sum)
    run_backward(y, b_of_log_s if log_s else None, *total)


@torch.no_grad()
def _flow_step_inverse(dtype: torch.dtype, n: int = 4, entering: int = 0, swap: bool = False, T: int = T) -> None:
    halves = (meta_constant(dtype, B, n, T) for _ in range(2))
    early = meta_constant(dtype, B, entering, T) if entering else None
    flow_step_inverse(
        *halves, meta_constant(dtype, B, 2 * n, T), meta_constant(torch.float32, 2 * n, 2 * n), early, swap=swap
    )


def _invertible_conv1x1(
    dtype: torch.dtype, c: int = 8, T: int = T, frozen: str = "", channels_last: bool = False
) -> None:
    z, weight = meta_leaf(dtype, B, c, T), meta_leaf(dtype, c, c, 1)
    if channels_last:
        z = in_channels_last(z)
    z, weight = (x.detach() if name == frozen else x for name, x in (("z", z), ("weight", weight)))
    run_backward(*invertible_conv1x1(z, weight))


@torch.no_grad()
def _invertible_conv1x1_inverse(dtype: torch.dtype, c: int = 8) -> None:
    """With a float32 inverse, as the model caches it, and without one."""
    z, weight = meta_constant(dtype, B, c, T), meta_constant(dtype, c, c, 1)
    invertible_conv1x1_inverse(z, weight, meta_constant(torch.float32, c, c))
    invertible_conv1x1_inverse(z, weight)


def _invertible_conv1x1_factors(dtype: torch.dtype, *channels: int, wants: str = "both") -> None:
    inverses, log_dets = invertible_conv1x1_factors([meta_leaf(dtype, c, c, 1) for c in channels])
    run_backward(*(inverses if wants != "log_dets" else ()), log_dets if wants != "inverses" else None)


def _weight_norm(dtype: torch.dtype, *shape: int, frozen: str = "", taps_outside: bool = False) -> None:
    v, g = meta_leaf(dtype, *shape), meta_leaf(dtype, shape[0], 1, 1)
    if taps_outside:
        v = in_channels_last(v)
    v, g = (x.detach() if name == frozen else x for name, x in (("v", v), ("g", g)))
    run_backward(weight_norm(v, g))


def _weight_norm_packed(
    dtype: torch.dtype, *groups: Sequence[tuple[int, int, int]], out: torch.dtype | None = None
) -> None:
    leaves = [[(meta_leaf(dtype, *shape), meta_leaf(dtype, shape[0], 1, 1)) for shape in group] for group in groups]
    run_backward(*weight_norm_packed(leaves, out))


def _wavenet_layer(
    dtype: torch.dtype,
    channels: int,
    T: int = LONG,
    conditioning: int | str | None = 640,
    last: bool = False,
    skip_channels: int | None = None,
    bias: bool = True,
    mask: bool = False,
    lengths: bool = False,
    skip: bool = True,
    taps: int = 3,
    trains: bool = True,
    form: Config | None = None,
) -> None:
    """`conditioning`: its channels, or 'added': not projected. `form`: the choice between one and two kernels."""
    skips = skip_channels or channels
    rows = skips if last else channels + skips
    projected = isinstance(conditioning, int)
    forming = nullcontext() if form is None else use_config("wavenet_layer_form", form)
    with torch.set_grad_enabled(trains), forming:
        leaf = partial(meta_leaf, dtype)
        outputs = wavenet_layer(
            leaf(B, channels, T),
            leaf(B, conditioning if projected else 2 * channels, T) if conditioning else None,
            leaf(2 * channels, channels, taps),
            leaf(2 * channels) if bias else None,
            leaf(2 * channels, conditioning, 1) if projected else None,
            leaf(2 * channels) if projected and bias else None,
            leaf(rows, channels, 1),
            leaf(rows) if bias else None,
            4,
            meta_constant(dtype, B, 1, T) if mask else None,
            lengths=meta_constant(torch.int64, B) if lengths else None,
            skip=leaf(B, skips, T) if skip else None,
        )
        run_backward(*outputs)


# Kernels with matrix products, and the constant that holds the products' rows.
PRODUCTS = {
    f"wavenet_{kernel}_kernel": "BT" for kernel in ("gate_fwd", "res_skip_fwd", "layer_fwd", "gate_bwd", "input_bwd")
}
_case = partial(make_case, PRODUCTS)

FULL, OVER_TIME, SHARED = (B, 256, T), (B, 256, 1), (1, 256, T)

GATED_ACTIVATION = (
    _case(_gated_activation, "b of its own", FULL, **SWEPT),
    _case(_gated_activation, "b over time, bias", OVER_TIME, bias=True, **SWEPT),
    _case(_gated_activation, "bare, odd length", T=ODD_T),
    _case(_gated_activation, "bias, odd length", bias=True, T=ODD_T),
    _case(_gated_activation, "b of all items", SHARED),
    _case(_gated_activation, "b of all items, dropout before", SHARED, dropout="before", p_dropout=0.1),
    _case(_gated_activation, "dropout before", OVER_TIME, bias=True, dropout="before", p_dropout=0.1),
    _case(_gated_activation, "dropout after", FULL, dropout="after", p_dropout=0.1, seed_in_memory=True),
    _case(_gated_activation, "gate first", FULL, bias=True, gate_first=True),
    _case(_gated_activation, "channels last", (B, T, 256), bias=True, channels_last=True),
    _case(
        _gated_activation, "channels last, over time", (B, 1, 256), channels_last=True, dropout="after", p_dropout=0.1
    ),
    _case(_gated_activation, "gradient of b alone", FULL, bias=True, frozen=("a", "bias")),
    _case(_gated_activation, "gradient of bias alone", FULL, bias=True, frozen=("a", "b")),
)

AFFINE_COUPLING = (
    _case(_affine_coupling, "training", **SWEPT),
    _case(_affine_coupling, "inverse", inverse=True),
    _case(_affine_coupling, "log s unused, odd length", log_s=False, log_s_sum=False, T=ODD_T),
    _case(_affine_coupling, "96 channels", n=96),
    _case(_affine_coupling, "3 channels last", n=3, channels_last=True),
    _case(_flow_step_inverse, "8 channels", **SWEPT),
    _case(_flow_step_inverse, "16 channels, 2 entering, swapped", n=8, entering=2, swap=True, **SWEPT_FLOAT32),
    _case(_flow_step_inverse, "6 channels, 2 entering, odd length", n=3, entering=2, T=ODD_T),
)

INVERTIBLE_CONV1X1 = (
    _case(_invertible_conv1x1, "8 channels", **SWEPT),
    _case(_invertible_conv1x1, "16 channels", c=16, **SWEPT_FLOAT32),
    _case(_invertible_conv1x1, "5 channels, odd length", c=5, T=ODD_T),
    _case(_invertible_conv1x1, "channels last", channels_last=True),
    _case(_invertible_conv1x1, "gradient of the weight alone", frozen="z"),
    _case(_invertible_conv1x1, "gradient of z alone", frozen="weight"),
    _case(_invertible_conv1x1_inverse, "8 channels", precisions=DTYPES),
    _case(_invertible_conv1x1_factors, "WaveGlow's", *[8] * 4, *[6] * 4, *[4] * 4, precisions=DTYPES),
    _case(_invertible_conv1x1_factors, "16 channels", *[16] * 40, precisions=BFLOAT16),
    _case(_invertible_conv1x1_factors, "gradient of log|det| alone", 8, 8, wants="log_dets"),
    _case(_invertible_conv1x1_factors, "gradient of the inverses alone", 8, 8, wants="inverses"),
)

WAVEGLOW_WEIGHTS = ([(1024, 512, 3), (1024, 640, 1)], [(1024, 512, 1)], [(512, 512, 1)])

WEIGHT_NORM = (
    _case(_weight_norm, "a convolution's", 1024, 512, 3, **SWEPT),
    _case(_weight_norm, "taps outside", 1024, 512, 3, taps_outside=True),
    _case(_weight_norm, "odd sizes", 33, 7, 5),
    _case(_weight_norm, "gradient of g alone", 1024, 512, 3, frozen="v"),
    _case(_weight_norm, "gradient of v alone", 1024, 512, 3, frozen="g"),
    _case(_weight_norm_packed, "a layer's", *WAVEGLOW_WEIGHTS, **SWEPT),
    _case(_weight_norm_packed, "one, written in half", [(33, 7, 5)], out=torch.float16, precisions={90: ("float32",)}),
)

BARE = {"conditioning": None, "bias": False, "skip": False}
# Strides of 1 are constants, which Triton 3.6 forgets in loops if they are in a struct of a struct.
STRIDES_OF_1 = {"T": 1, "conditioning": 1, "mask": True, "lengths": True, "trains": False, "precisions": BFLOAT16}
ALL_OPTIONS = {"T": LONG + 1, "conditioning": 80, "mask": True, "lengths": True}
INFERENCE = {"trains": False, "lengths": True, "skip_channels": 8, "precisions": BFLOAT16}

WAVENET_LAYER = (
    _case(_wavenet_layer, "512 channels", 512, **SWEPT_PRODUCTS),
    _case(_wavenet_layer, "256 channels", 256, precisions=BFLOAT16),
    _case(_wavenet_layer, "256 channels, one kernel", 256, form=FUSED, **SWEPT_PRODUCTS),
    _case(_wavenet_layer, "64 channels", 64, **SWEPT_PRODUCTS),
    _case(_wavenet_layer, "512 channels, inference", 512, **INFERENCE),
    _case(_wavenet_layer, "256 channels, inference", 256, **INFERENCE),
    _case(_wavenet_layer, "336 channels, all options", 336, precisions=BFLOAT16, **ALL_OPTIONS),
    _case(_wavenet_layer, "240 channels, all options", 240, form=FUSED, precisions=TF32, **ALL_OPTIONS),
    _case(_wavenet_layer, "512 channels, last, bare", 512, last=True, **BARE),
    _case(_wavenet_layer, "256 channels, last, bare", 256, last=True, form=FUSED, **BARE),
    _case(_wavenet_layer, "VITS", 192, conditioning="added", mask=True, taps=5),
    _case(_wavenet_layer, "336 channels, one position", 336, **STRIDES_OF_1),
    _case(_wavenet_layer, "192 channels, one position", 192, form=FUSED, **STRIDES_OF_1),
)

CASES = (*GATED_ACTIVATION, *AFFINE_COUPLING, *INVERTIBLE_CONV1X1, *WEIGHT_NORM, *WAVENET_LAYER)
