"""A small call of every operation of `fastglow.kernels`, with odd sizes, by the operation's file name.

The table can be read without loading torch.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import fastglow

if TYPE_CHECKING:
    from torch import Tensor

    from fastglow.kernels import RecurrentWeights


class Draw(Protocol):
    """Makes the tensors of a call."""

    def leaf(self, *shape: int, scale: float = 1.0) -> "Tensor":
        """Random values, in the dtype that is tested, that require a gradient."""

    def constant(self, *shape: int, scale: float = 1.0, dtype: str | None = None) -> "Tensor":
        """The same without a gradient, or in another dtype."""

    def near_identity(self, c: int) -> "Tensor":
        """[c, c, 1] that can be inverted, and requires a gradient."""

    def integers(self, *values: int) -> "Tensor":
        """int64."""


class Call(NamedTuple):
    function: Callable[..., Any]
    arguments: dict[str, Any]


Case = Callable[[Draw], Call]

B, T = 3, 21


def _gated_activation(draw: Draw) -> Call:
    arguments = {"a": draw.leaf(B, 6, T), "b": draw.leaf(B, 6, 1), "bias": draw.leaf(6)}
    return Call(fastglow.kernels.gated_activation, arguments | {"dropout": "after", "p_dropout": 0.3, "seed": 3})


def _affine_coupling(draw: Draw) -> Call:
    arguments = {"x": draw.leaf(B, 5, T), "b_log_s": draw.leaf(B, 10, T, scale=0.3), "return_log_s_sum": True}
    return Call(fastglow.kernels.affine_coupling, arguments)


def _affine_coupling_inverse(draw: Draw) -> Call:
    arguments = {"y": draw.leaf(B, 5, T), "b_log_s": draw.leaf(B, 10, T, scale=0.3)}
    return Call(fastglow.kernels.affine_coupling_inverse, arguments)


def _flow_step_inverse(draw: Draw) -> Call:
    arguments = {
        "kept": draw.constant(B, 3, T),
        "changed": draw.constant(B, 3, T),
        "b_log_s": draw.constant(B, 6, T, scale=0.3),
        "inverse": draw.constant(6, 6, dtype="float32"),
        "entering": draw.constant(B, 2, T),
    }
    return Call(fastglow.kernels.flow_step_inverse, arguments | {"swap": True})


def _invertible_conv1x1(draw: Draw) -> Call:
    return Call(fastglow.kernels.invertible_conv1x1, {"z": draw.leaf(B, 5, T), "weight": draw.near_identity(5)})


def _invertible_conv1x1_inverse(draw: Draw) -> Call:
    arguments = {"z": draw.leaf(B, 5, T), "weight": draw.near_identity(5)}
    return Call(fastglow.kernels.invertible_conv1x1_inverse, arguments)


def _invertible_conv1x1_factors(draw: Draw) -> Call:
    weights = [draw.near_identity(c) for c in (8, 5, 3)]
    return Call(fastglow.kernels.invertible_conv1x1_factors, {"weights": weights})


def _weight_norm(draw: Draw) -> Call:
    return Call(fastglow.kernels.weight_norm, {"v": draw.leaf(5, 7, 3), "g": draw.leaf(5, 1, 1)})


def _weight_norm_packed(draw: Draw) -> Call:
    shapes = [[(5, 7, 3), (5, 3, 1)], [(3, 6, 1)]]
    groups = [[(draw.leaf(*shape), draw.leaf(shape[0], 1, 1)) for shape in group] for group in shapes]
    return Call(fastglow.kernels.weight_norm_packed, {"groups": groups})


def _wavenet_layer(draw: Draw) -> Call:
    C, S, conditioning = 10, 9, 11
    arguments = {
        "h": draw.leaf(B, C, T),
        "conditioning": draw.leaf(B, conditioning, T),
        "in_weight": draw.leaf(2 * C, C, 3, scale=0.2),
        "in_bias": draw.leaf(2 * C),
        "cond_weight": draw.leaf(2 * C, conditioning, 1, scale=0.2),
        "cond_bias": draw.leaf(2 * C),
        "res_skip_weight": draw.leaf(C + S, C, 1, scale=0.2),
        "res_skip_bias": draw.leaf(C + S),
    }
    rest = {"dilation": 2, "lengths": draw.integers(T, 9, 0), "skip": draw.leaf(B, S, T)}
    return Call(fastglow.kernels.wavenet_layer, arguments | rest)


def _lstm_cell(draw: Draw) -> Call:
    n_in, n = 7, 10
    arguments = {
        "x": draw.leaf(B, n_in),
        "h": draw.leaf(B, n),
        "c": draw.leaf(B, n),
        "weight_ih": draw.leaf(4 * n, n_in, scale=0.3),
        "weight_hh": draw.leaf(4 * n, n, scale=0.3),
        "bias_ih": draw.leaf(4 * n),
        "bias_hh": draw.leaf(4 * n),
    }
    return Call(fastglow.kernels.lstm_cell, arguments | {"p_dropout_h": 0.2, "p_zoneout_c": 0.3, "seed": 5})


def _location_attention(draw: Draw) -> Call:
    A, D, n_query, filters, taps = 5, 20, 6, 3, 5
    arguments = {
        "query": draw.leaf(B, n_query),
        "memory": draw.leaf(B, T, D),
        "processed_memory": draw.leaf(B, T, A),
        "attention_weights_cat": draw.leaf(B, 2, T),
        "query_weight": draw.leaf(A, n_query, scale=0.3),
        "location_conv_weight": draw.leaf(filters, 2, taps, scale=0.3),
        "location_dense_weight": draw.leaf(A, filters, scale=0.3),
        "v_weight": draw.leaf(1, A),
    }
    return Call(fastglow.kernels.location_attention, arguments | {"lengths": draw.integers(T, 1, 7)})


def _prenet(draw: Draw) -> Call:
    weights = [draw.leaf(9, 6, scale=0.4), draw.leaf(10, 9, scale=0.4)]
    arguments = {"x": draw.leaf(B, 5, 6), "weights": weights, "p_dropout": 0.4}
    return Call(fastglow.kernels.prenet, arguments | {"seeds": draw.integers(3, 8, 5), "start": 2})


P, D, A, N, UNITS = 4, 20, 5, 10, 7


def _recurrent(draw: Callable[..., "Tensor"]) -> "RecurrentWeights":
    def cell(n_in: int, n: int) -> Any:
        weights = draw(4 * n, n_in, scale=0.3), draw(4 * n, n, scale=0.3)
        return fastglow.kernels.LSTMWeights(*weights, draw(4 * n), draw(4 * n))

    sizes = ((A, N), (3, 2, 5), (A, 3), (1, A))
    attention = fastglow.kernels.AttentionWeights(*(draw(*shape, scale=0.3) for shape in sizes))
    return fastglow.kernels.RecurrentWeights(cell(P + D, N), attention, cell(N + D, UNITS))


def _teacher_forced_loop(draw: Draw) -> Call:
    arguments = {
        "decoder_inputs": draw.leaf(2, B, P),
        "memory": draw.leaf(B, T, D),
        "processed_memory": draw.leaf(B, T, A),
        "memory_lengths": draw.integers(T, 7, 1),
        "weights": _recurrent(draw.leaf),
    }
    dropout = {"p_attention_dropout": 0.2, "p_decoder_dropout": 0.2, "seed": 5}
    return Call(fastglow.kernels.teacher_forced_loop, arguments | dropout)


def _decode_loop(draw: Draw, *lengths: int) -> Call:
    n_frame, hidden = 4, UNITS + D
    longest = max(lengths)
    output = fastglow.kernels.OutputWeights(
        (draw.constant(6, n_frame), draw.constant(P, 6)),
        draw.constant(n_frame, hidden, scale=0.3),
        draw.constant(n_frame),
        draw.constant(1, hidden, scale=0.3),
        draw.constant(1),
    )
    arguments = {
        "memory": draw.constant(len(lengths), longest, D),
        "processed_memory": draw.constant(len(lengths), longest, A),
        "lengths": draw.integers(*lengths),
        "seeds": draw.integers(*range(3, 3 + len(lengths))),
        "recurrent": _recurrent(draw.constant),
        "output": output,
    }
    # No gate is above 1, so that rounding decides nothing.
    options = {"p_prenet_dropout": 0.5, "gate_threshold": 1.0, "max_steps": 3, "early_stopping": False}
    return Call(fastglow.kernels.decode_loop, arguments | options)


def _decode_loop_small_batch(draw: Draw) -> Call:
    return _decode_loop(draw, 19, 0, 7)


def _decode_loop_large_batch(draw: Draw) -> Call:
    """More items than the persistent kernel takes."""
    return _decode_loop(draw, *[19, 0, 7] * 3)


def _decode_pieces(draw: Draw) -> Call:
    import torch

    @wraps(fastglow.kernels.decode_pieces)
    def joined(**arguments: Any) -> "list[Tensor]":
        pieces = list(fastglow.kernels.decode_pieces(**arguments))
        parts = [torch.cat([getattr(piece, name) for piece in pieces], dim=1) for name in ("frames", "alignments")]
        return [*parts, pieces[-1].steps]

    return Call(joined, _decode_loop_small_batch(draw).arguments | {"piece_steps": 2})


OPERATIONS: dict[str, tuple[Case, ...]] = {
    "affine_coupling": (_affine_coupling, _affine_coupling_inverse, _flow_step_inverse),
    "decode_loop": (_decode_loop_small_batch, _decode_loop_large_batch, _decode_pieces),
    "gated_activation": (_gated_activation,),
    "invertible_conv1x1": (_invertible_conv1x1, _invertible_conv1x1_inverse, _invertible_conv1x1_factors),
    "location_attention": (_location_attention,),
    "lstm_cell": (_lstm_cell,),
    "prenet": (_prenet,),
    "teacher_forced_loop": (_teacher_forced_loop,),
    "wavenet_layer": (_wavenet_layer,),
    "weight_norm": (_weight_norm, _weight_norm_packed),
}
