"""A small call of every operation, whose tensors can be laid out in memory in any way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastglow import kernels
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from fastglow.kernels.launch import use_config
from fastglow.kernels.wavenet_layer.forward import TWO_KERNELS

Arrange = Callable[[str, Tensor], Tensor]
"""(name, tensor) -> the same values in another layout. Upstream gradients are named 'd0', 'd1', ..."""


@dataclass(frozen=True)
class Call:
    """`run(**tensors)` returns tensors or None; floating-point ones among the tensors get gradients, unless frozen."""

    name: str
    run: Callable[..., Any]
    shapes: Mapping[str, tuple[int, ...]]
    integers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # values of [B] tensors
    differentiable: bool = True
    strides: bool = True  # whether its kernels read the tensors where they are: otherwise only copies are read

    def __str__(self) -> str:
        return self.name

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random values of order 1, smaller in matrices."""
        draw = torch.Generator().manual_seed(0)
        floats = {name: (torch.randn(shape, generator=draw) / 2).to(dtype) for name, shape in self.shapes.items()}
        return floats | {name: torch.tensor(values, dtype=torch.int64) for name, values in self.integers.items()}

    def names(self) -> list[str]:
        """Of all tensors and upstream gradients."""
        return [*self.shapes, *self.integers, *(f"d{i}" for i in range(2) if self.differentiable)]


def results(call: Call, tensors: Mapping[str, Tensor], arrange: Arrange = lambda name, x: x) -> dict[str, Tensor]:
    """Outputs and gradients, contiguous, by name."""
    arranged = {name: arrange(name, x) for name, x in tensors.items()}
    if call.differentiable:
        arranged = {n: x.requires_grad_() if x.is_floating_point() else x for n, x in arranged.items()}
    outputs = call.run(**arranged)
    outputs = [x for x in ([outputs] if isinstance(outputs, Tensor) else outputs) if x is not None]
    found = {f"output {i}": x.detach() for i, x in enumerate(outputs)}
    reached = [x for x in outputs if x.requires_grad]
    if call.differentiable and reached:
        draw = torch.Generator().manual_seed(1)
        ds = [arrange(f"d{i}", torch.randn(x.shape, generator=draw).to(x.dtype)) for i, x in enumerate(reached)]
        leaves = {name: x for name, x in arranged.items() if x.requires_grad}
        gradients = torch.autograd.grad(reached, list(leaves.values()), ds, allow_unused=True)
        found |= {
            f"gradient of {name}": torch.zeros(leaf.shape) if d is None else d
            for (name, leaf), d in zip(leaves.items(), gradients, strict=True)
        }
    return {name: x.contiguous() for name, x in found.items()}


def _wavenet(h, in_weight, in_bias, res_skip_weight, res_skip_bias, conditioning=None, cond_weight=None,
             cond_bias=None, mask=None, lengths=None, skip=None):  # fmt: skip
    mask = None if mask is None else mask.detach()  # the kernels have no gradient for it
    return kernels.wavenet_layer(
        h, conditioning, in_weight, in_bias, cond_weight, cond_bias, res_skip_weight, res_skip_bias, 2, mask,
        lengths=lengths, skip=skip,
    )  # fmt: skip


def _two_kernels(**tensors):
    with use_config("wavenet_layer_form", TWO_KERNELS):
        return _wavenet(**tensors)


def _packed(v1, g1, v2, g2, v3, g3):
    return kernels.weight_norm_packed([[(v1, g1), (v2, g2)], [(v3, g3)]])


def _factors(w1, w2, w3):
    inverses, log_dets = kernels.invertible_conv1x1_factors([w1, w2, w3])
    return [torch.cat([x.flatten() for x in inverses]), log_dets]


def _prenet(x, w1, w2, seeds=None, noise=None):
    noise = None if noise is None else noise.detach().float()
    return kernels.prenet(x, [w1, w2], 0.5, noise, seeds=seeds)


def _attention(query, memory, processed, cat, query_weight, conv, dense, v, v_bias, mask=None, lengths=None):
    mask = None if mask is None else mask.bool()
    return kernels.location_attention(
        query, memory, processed, cat, query_weight, conv, dense, v, mask, lengths=lengths, v_bias=v_bias
    )


def _recurrent(**weights) -> RecurrentWeights:
    cells = [LSTMWeights(*(weights[f"{cell}_{part}"] for part in ("ih", "hh", "bi", "bh"))) for cell in ("a", "d")]
    attention = AttentionWeights(weights["query"], weights["conv"], weights["dense"], weights["v"])
    return RecurrentWeights(cells[0], attention, cells[1])


def _teacher_forced(inputs, memory, processed, lengths, **weights):
    return kernels.teacher_forced_loop(
        inputs,
        memory,
        processed,
        lengths,
        _recurrent(**weights),
        p_attention_dropout=0.1,
        p_decoder_dropout=0.1,
        seed=3,
    )


def _decode(memory, processed, lengths, seeds, w1, w2, projection, projection_bias, gate, gate_bias, **weights):
    output = OutputWeights((w1, w2), projection, projection_bias, gate, gate_bias)
    result = kernels.decode_loop(
        memory, processed, lengths, seeds, _recurrent(**weights), output, p_prenet_dropout=0.5, gate_threshold=0.5,
        max_steps=2, early_stopping=False,
    )  # fmt: skip
    return [result.frames, result.alignments]


def _cell(name: str, n_in: int, n: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}_ih": (4 * n, n_in), f"{name}_hh": (4 * n, n), f"{name}_bi": (4 * n,), f"{name}_bh": (4 * n,)}


_ATTENTION = {"query": (5, 7), "conv": (3, 2, 5), "dense": (5, 3), "v": (1, 5)}

CALLS = (
    Call("gated_activation", kernels.gated_activation, {"a": (3, 6, 5), "b": (3, 6, 5), "bias": (6,)}),
    Call(
        "gated_activation without terms per channel",
        lambda a: kernels.gated_activation(a, dropout="after", p_dropout=0.3, seed=4),
        {"a": (3, 6, 5)},
    ),
    Call(
        "gated_activation, channels last",
        lambda a, b: kernels.gated_activation(a, b, channels_last=True, dropout="before", p_dropout=0.3, seed=4),
        {"a": (3, 5, 6), "b": (3, 5, 6)},
    ),
    Call(
        "affine_coupling",
        lambda x, b_log_s: kernels.affine_coupling(x, b_log_s, return_log_s_sum=True),
        {"x": (3, 3, 5), "b_log_s": (3, 6, 5)},
    ),
    Call("affine_coupling_inverse", kernels.affine_coupling_inverse, {"y": (3, 3, 5), "b_log_s": (3, 6, 5)}),
    Call(
        "flow_step_inverse",
        lambda **tensors: kernels.flow_step_inverse(**tensors, swap=True),
        {"kept": (3, 3, 5), "changed": (3, 3, 5), "b_log_s": (3, 6, 5), "inverse": (6, 6), "entering": (3, 3, 5)},
        differentiable=False,
    ),
    Call("weight_norm", kernels.weight_norm, {"v": (5, 3, 3), "g": (5, 1, 1)}),
    Call(
        "weight_norm_packed", _packed,
        {"v1": (5, 3, 3), "g1": (5, 1, 1), "v2": (5, 4, 3), "g2": (5, 1, 1), "v3": (3, 5, 3), "g3": (3, 1, 1)},
    ),
    Call("invertible_conv1x1", lambda z, w: kernels.invertible_conv1x1(z, w), {"z": (3, 4, 5), "w": (4, 4, 1)}),
    Call(
        "invertible_conv1x1_inverse", lambda z, w: kernels.invertible_conv1x1_inverse(z, w),
        {"z": (3, 4, 5), "w": (4, 4, 1)},
    ),
    Call("invertible_conv1x1_factors", _factors, {"w1": (4, 4, 1), "w2": (3, 3, 1), "w3": (5, 5, 1)}),
    Call(
        "lstm_cell",
        lambda **tensors: kernels.lstm_cell(**tensors, p_dropout_h=0.2, p_zoneout_h=0.1, p_zoneout_c=0.1, seed=5),
        {"x": (3, 5), "h": (3, 7), "c": (3, 7), "weight_ih": (28, 5), "weight_hh": (28, 7), "bias_ih": (28,),
         "bias_hh": (28,)},
    ),
    Call(
        "lstm_cell of one item",
        lambda **tensors: kernels.lstm_cell(**tensors),
        {"x": (1, 5), "h": (1, 7), "c": (1, 7), "weight_ih": (28, 5), "weight_hh": (28, 7)},
    ),
    Call("prenet", _prenet, {"x": (3, 4, 5), "w1": (6, 5), "w2": (7, 6)}, {"seeds": (1, 2, 3)}),
    Call("prenet with noise", _prenet, {"x": (3, 4, 5), "w1": (6, 5), "w2": (6, 6), "noise": (2, 3, 4, 6)}),
    Call(
        "wavenet_layer", _wavenet,
        {"h": (3, 4, 6), "in_weight": (8, 4, 3), "in_bias": (8,), "res_skip_weight": (8, 4, 1), "res_skip_bias": (8,),
         "conditioning": (3, 5, 6), "cond_weight": (8, 5, 1), "cond_bias": (8,), "skip": (3, 4, 6)},
        {"lengths": (6, 3, 5)},
    ),
    Call(
        "wavenet_layer, conditioning added", _wavenet,
        {"h": (3, 4, 6), "in_weight": (8, 4, 3), "in_bias": (8,), "res_skip_weight": (8, 4, 1), "res_skip_bias": (8,),
         "conditioning": (3, 8, 6), "mask": (3, 1, 6)},
    ),
    Call(
        "wavenet_layer of two kernels",
        _two_kernels,
        {
            "h": (3, 4, 6),
            "in_weight": (8, 4, 3),
            "in_bias": (8,),
            "res_skip_weight": (7, 4, 1),
            "res_skip_bias": (7,),
            "conditioning": (3, 8, 1),
        },
        differentiable=False,  # its backward kernels are those of the calls above
    ),
    Call(
        "location_attention", _attention,
        {"query": (3, 7), "memory": (3, 6, 9), "processed": (3, 6, 5), "cat": (3, 2, 6), "query_weight": (5, 7),
         "conv": (3, 2, 5), "dense": (5, 3), "v": (1, 5), "v_bias": (1,)},
        {"lengths": (6, 3, 5)},
    ),
    Call(
        "teacher_forced_loop", _teacher_forced,
        {"inputs": (2, 3, 5), "memory": (3, 6, 8), "processed": (3, 6, 5), **_cell("a", 13, 7), **_ATTENTION,
         **_cell("d", 15, 8)},
        {"lengths": (6, 3, 5)},
        strides=False,
    ),
    Call(
        "decode_loop", _decode,
        {"memory": (3, 6, 9), "processed": (3, 6, 5), "w1": (6, 4), "w2": (5, 6), "projection": (4, 17),
         "projection_bias": (4,), "gate": (1, 17), "gate_bias": (1,), **_cell("a", 14, 7), **_ATTENTION,
         **_cell("d", 16, 8)},
        {"lengths": (6, 3, 5), "seeds": (1, 2, 3)},
        differentiable=False,
        strides=False,
    ),
)  # fmt: skip
