"""Calls of WaveGlow's operations."""

from functools import partial

import torch
from torch import Tensor

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
from fastglow.kernels.wavenet_layer import forward as wavenet_forward

from .calls import FLOAT, HALF, Case, Inputs, both, config
from .order import Results

B, T = 2, 21


def _gated_activation(inputs: Inputs, b: tuple[int, int, int] | None = None, bias: bool = False, **options) -> Results:
    a = inputs.leaf(B, T, 6) if options.get("channels_last") else inputs.leaf(B, 6, T)
    return inputs.results(
        gated_activation(
            a,
            None if b is None else inputs.leaf(*b),
            inputs.leaf(6) if bias else None,
            seed=3,
            p_dropout=0.3,
            **options,
        )
    )


def _affine_coupling(inputs: Inputs, inverse: bool = False) -> Results:
    x, b_log_s = inputs.leaf(B, 5, T), inputs.leaf(B, 10, T, scale=0.3)
    if inverse:
        return inputs.results(affine_coupling_inverse(x, b_log_s))
    return inputs.results(*affine_coupling(x, b_log_s, return_log_s_sum=True))


@torch.no_grad()
def _flow_step_inverse(inputs: Inputs, entering: int, swap: bool) -> Results:
    halves = (inputs.constant(B, 3, T) for _ in range(2))
    early = inputs.constant(B, entering, T) if entering else None
    b_log_s, inverse = inputs.constant(B, 6, T, scale=0.3), inputs.constant(6, 6, dtype=torch.float32)
    return inputs.results(flow_step_inverse(*halves, b_log_s, inverse, early, swap=swap))


def _near_identity(inputs: Inputs, c: int) -> Tensor:
    return inputs.as_leaf((torch.eye(c) + 0.2 * torch.randn(c, c) / c).unsqueeze(2))


def _invertible_conv1x1(inputs: Inputs, inverse: bool = False) -> Results:
    z, weight = inputs.leaf(B, 5, T), _near_identity(inputs, 5)
    if inverse:
        return inputs.results(invertible_conv1x1_inverse(z, weight))
    return inputs.results(*invertible_conv1x1(z, weight))


def _invertible_conv1x1_factors(inputs: Inputs, *channels: int) -> Results:
    inverses, log_dets = invertible_conv1x1_factors([_near_identity(inputs, c) for c in channels])
    return inputs.results(*inverses, log_dets)


def _weight_norm(inputs: Inputs) -> Results:
    return inputs.results(weight_norm(inputs.leaf(5, 7, 3), inputs.leaf(5, 1, 1)))


def _weight_norm_packed(inputs: Inputs, *groups: tuple[tuple[int, int, int], ...]) -> Results:
    leaves = [[(inputs.leaf(*shape), inputs.leaf(shape[0], 1, 1)) for shape in group] for group in groups]
    return inputs.results(*weight_norm_packed(leaves))


def _wavenet_layer(
    inputs: Inputs, conditioning: int | None, last: bool = False, C: int = 10, S: int = 9, trains: bool = True
) -> Results:
    """`conditioning`: its channels where it is projected."""
    rows = S if last else C + S
    with torch.set_grad_enabled(trains):
        leaf = inputs.leaf if trains else inputs.constant
        return inputs.results(
            *wavenet_layer(
                leaf(B, C, T),
                leaf(B, 2 * C if conditioning is None else conditioning, T),
                leaf(2 * C, C, 3, scale=0.2),
                leaf(2 * C),
                None if conditioning is None else leaf(2 * C, conditioning, 1, scale=0.2),
                None if conditioning is None else leaf(2 * C),
                leaf(rows, C, 1, scale=0.2),
                leaf(rows),
                2,
                None if last else inputs.place((torch.rand(B, 1, T) < 0.8).to(torch.float32)),
                lengths=inputs.integers(T, 9),
                skip=None if last else leaf(B, S, T),
            )
        )


_gate = partial(Case, configs=both("gated_activation", ROWS=4, COLUMNS=32))
_coupling = partial(Case, configs=both("affine_coupling", TILE=64) | {"flow_step_inverse": config(TILE=128)})
_conv1x1 = partial(Case, configs=both("invertible_conv1x1", BT=16))
_norm = partial(Case, configs=both("weight_norm", BR=2, BN=4) | both("weight_norm_packed", BR=2, BN=4))
_WAVENET_KERNELS = ("gate_fwd", "res_skip_fwd", "layer_fwd", "gate_bwd", "input_bwd")
_wavenet = partial(Case, configs={f"wavenet_{kernel}": config(BT=16, BN=8, BK=8) for kernel in _WAVENET_KERNELS})
_TWO_KERNELS = ((wavenet_forward, "FUSED_CHANNELS", 0),)

CASES = (
    _gate("gated_activation, one row", partial(_gated_activation, b=(B, 6, T), dropout="after")),
    _gate(
        "gated_activation, b over time",
        partial(_gated_activation, b=(B, 6, 1), bias=True, dropout="before"),
        dtypes=HALF,
    ),
    _gate(
        "gated_activation, b of all items",
        partial(_gated_activation, b=(1, 6, T), bias=True, gate_first=True),
        dtypes=FLOAT,
    ),
    _gate("gated_activation, channels last", partial(_gated_activation, b=(B, T, 6), channels_last=True)),
    _coupling("affine_coupling", _affine_coupling),
    _coupling("affine_coupling, inverse", partial(_affine_coupling, inverse=True)),
    _coupling("flow_step_inverse", partial(_flow_step_inverse, entering=0, swap=False)),
    _coupling("flow_step_inverse, entering", partial(_flow_step_inverse, entering=2, swap=True)),
    _conv1x1("invertible_conv1x1", _invertible_conv1x1),
    _conv1x1("invertible_conv1x1, inverse", partial(_invertible_conv1x1, inverse=True), dtypes=HALF),
    _conv1x1("invertible_conv1x1_factors", lambda inputs: _invertible_conv1x1_factors(inputs, 16, 5, 3, 4, 16)),
    _norm("weight_norm", _weight_norm),
    _norm(
        "weight_norm_packed",
        lambda inputs: _weight_norm_packed(inputs, ((5, 7, 3), (5, 3, 1)), ((3, 6, 1),)),
    ),
    _wavenet("wavenet_layer", partial(_wavenet_layer, conditioning=11), dtypes=FLOAT),
    _wavenet("wavenet_layer, last", partial(_wavenet_layer, conditioning=None, last=True), dtypes=HALF),
    _wavenet(
        "wavenet_layer, two kernels", partial(_wavenet_layer, conditioning=11), constants=_TWO_KERNELS, dtypes=HALF
    ),
    _wavenet(
        "wavenet_layer, two kernels, last", partial(_wavenet_layer, conditioning=None, last=True),
        constants=_TWO_KERNELS, dtypes=FLOAT,
    ),
    _wavenet("wavenet_layer, inference", partial(_wavenet_layer, conditioning=11, trains=False), dtypes=HALF),
)  # fmt: skip
