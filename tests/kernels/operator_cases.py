"""Calls of the functions of `fastglow.ops`, and of the operators behind them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastglow import ops
from fastglow.kernels import invertible_conv1x1_factors, prenet, teacher_forced_loop, weight_norm, weight_norm_packed

from .checks import strided
from .teacher_forced_cases import Case as LoopCase
from .teacher_forced_cases import by_name


class Call(NamedTuple):
    name: str
    function: Callable[..., Any]
    tensors: dict[str, Tensor]
    options: dict[str, Any]

    def __str__(self) -> str:
        return self.name

    def leaves(self, dtype: torch.dtype, needs: Callable[[int], bool], spread: bool = False) -> dict[str, Tensor]:
        """The tensors in a dtype; those of floats whose number `needs` accepts require gradients."""
        found = {}
        for i, (name, x) in enumerate(self.tensors.items()):
            x = strided(x) if spread and x.dim() else x
            x = x.to(dtype) if x.is_floating_point() else x
            found[name] = x.detach().requires_grad_(x.is_floating_point() and needs(i))
        return found

    def run(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """The results that are present."""
        results = self.function(**tensors, **self.options)
        results = [results] if isinstance(results, Tensor) else results
        return [x for x in results if x is not None]


def _call(name: str, function: Callable[..., Any], options: dict[str, Any] | None = None, **shapes: Any) -> Call:
    generator = torch.Generator().manual_seed(len(name))
    tensors = {
        key: value if isinstance(value, Tensor) else torch.randn(value, generator=generator) / 2
        for key, value in shapes.items()
    }
    return Call(name, function, tensors, options or {})


def _factors(**weights: Tensor) -> list[Tensor]:
    inverses, log_dets = invertible_conv1x1_factors(list(weights.values()))
    return [*inverses, log_dets]


def _prenet(x: Tensor, noise: Tensor | None = None, seeds: Tensor | None = None, **weights: Tensor) -> Tensor:
    noise = None if noise is None else noise.float()  # which every dtype's kernel takes
    return prenet(x, list(weights.values()), 0.5, noise, seeds=seeds)


def _packed(v1: Tensor, g1: Tensor, v2: Tensor, g2: Tensor, v3: Tensor, g3: Tensor) -> list[Tensor]:
    return weight_norm_packed([[(v1, g1), (v2, g2)], [(v3, g3)]])


LENGTHS = torch.tensor([5, 3])
LSTM = {"x": (2, 5), "h": (2, 3), "c": (2, 3), "weight_ih": (12, 5), "weight_hh": (12, 3)}
ATTENTION = {
    "query": (2, 5), "memory": (2, 7, 3), "processed_memory": (2, 7, 4), "attention_weights_cat": (2, 2, 7),
    "query_weight": (4, 5), "location_conv_weight": (2, 2, 3), "location_dense_weight": (4, 2), "v_weight": (1, 4),
}  # fmt: skip
LAYER = {"h": (2, 3, 5), "in_weight": (6, 3, 3), "res_skip_weight": (5, 3, 1)}
NO_LAYER = {"conditioning": None, "in_bias": None, "cond_weight": None, "cond_bias": None, "res_skip_bias": None}
MASKS = {"p_dropout_h": 0.3, "p_dropout_c": 0.2, "p_zoneout_h": 0.1, "p_zoneout_c": 0.4, "seed": 7}

FUNCTIONS = (
    _call("gate", ops.gated_activation, a=(2, 6, 5)),
    _call("gate, b, bias", ops.gated_activation, a=(2, 6, 5), b=(2, 6, 5), bias=(6,)),
    _call("gate, b over time", ops.gated_activation, {"channels_last": True}, a=(2, 5, 6), b=(2, 1, 6)),
    _call(
        "gate, dropout", ops.gated_activation, {"dropout": "before", "p_dropout": 0.3, "seed": 5, "gate_first": True},
        a=(2, 6, 5), b=(1, 6, 5),
    ),
    _call(
        "gate, dropout after", ops.gated_activation, {"dropout": "after", "p_dropout": 0.3},
        a=(2, 6, 5), seed=torch.tensor(3),
    ),
    _call("fused gate", ops.fused_add_tanh_sigmoid_multiply, {"n_channels": 3}, input_a=(2, 6, 5), input_b=(2, 6, 1)),
    _call(
        "layer", ops.wavenet_layer, {"dilation": 2},
        **LAYER, conditioning=(2, 7, 5), in_bias=(6,), cond_weight=(6, 7, 1), cond_bias=(6,), res_skip_bias=(5,),
        skip=(2, 2, 5), lengths=LENGTHS,
    ),
    _call("layer without options", ops.wavenet_layer, {**NO_LAYER, "dilation": 1}, **LAYER),
    _call(
        "last layer", ops.wavenet_layer, {**{k: v for k, v in NO_LAYER.items() if k != "conditioning"}, "dilation": 1},
        **LAYER | {"res_skip_weight": (3, 3, 1)}, conditioning=(2, 6, 1),
    ),
    _call(
        "layer, mask", ops.wavenet_layer, {**NO_LAYER, "dilation": 1},
        **LAYER, mask=(torch.arange(5) < LENGTHS.view(-1, 1, 1)).int(),
    ),
    _call("1x1", ops.invertible_conv1x1, z=(2, 3, 5), weight=(3, 3, 1)),
    _call("1x1, known factor", ops.invertible_conv1x1, z=(2, 3, 5), weight=(3, 3, 1), log_det=()),
    _call("1x1 inverse", ops.invertible_conv1x1_inverse, z=(2, 3, 5), weight=(3, 3, 1)),
    _call("coupling", ops.affine_coupling, x=(2, 3, 5), b_log_s=(2, 6, 5)),
    _call("coupling, sum", ops.affine_coupling, {"return_log_s_sum": True}, x=(2, 3, 5), b_log_s=(2, 6, 5)),
    _call("coupling inverse", ops.affine_coupling_inverse, y=(2, 3, 5), b_log_s=(2, 6, 5)),
    _call("lstm", ops.lstm_cell, **LSTM, bias_ih=(12,), bias_hh=(12,)),
    _call("lstm, masks", ops.lstm_cell, MASKS, **LSTM),
    _call("lstm, expected", ops.lstm_cell, {"p_zoneout_h": 0.2, "training": False}, **LSTM),
    _call("attention", ops.location_attention, **ATTENTION),
    _call(
        "attention, options", ops.location_attention, {"sharpening": 2.0, "normalization": "sigmoid"},
        **ATTENTION, v_bias=(1,), lengths=LENGTHS, mask=torch.arange(7) > torch.tensor([[6], [4]]),
    ),
)  # fmt: skip

OTHERS = (
    _call("factors", _factors, a=(3, 3, 1), b=(2, 2, 1)),
    _call("prenet, seeds", _prenet, x=(2, 3, 5), seeds=torch.tensor([4, 9]), w1=(4, 5), w2=(3, 4), w3=(2, 3)),
    _call("prenet, noise", _prenet, x=(3, 5), noise=torch.rand(1, 3, 4), w1=(4, 5)),
    _call("weight norm", weight_norm, v=(3, 2, 3), g=(3, 1, 1)),
    _call("packed", _packed, v1=(3, 2, 3), g1=(3, 1, 1), v2=(3, 4, 1), g2=(3, 1, 1), v3=(2, 3, 1), g3=(2, 1, 1)),
)


def loop_call(p_dropout: float) -> Call:
    """The teacher-forced loop."""
    case = LoopCase(
        frames=2, batch=2, symbols=3, n_input=2, n_memory=3, n_attention=2, n_attention_rnn=3, n_decoder_rnn=2,
        filters=2, taps=3, p_attention_dropout=p_dropout, p_decoder_dropout=p_dropout,
    )  # fmt: skip
    arguments = case.arguments(torch.float32, "cpu")
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    options = {name: x for name, x in arguments.items() if not isinstance(x, Tensor)}
    return Call(f"loop, dropout {p_dropout}", by_name(teacher_forced_loop), tensors, options)
