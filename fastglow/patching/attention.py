"""Location-sensitive attention: of NVIDIA's Tacotron 2 and its family, of coqui and of ESPnet.

An item that is all padding gets zeros; these modules give it NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastglow import kernels
from fastglow.kernels.decoder_weights import AttentionWeights

from .adapter import Adapter, Call
from .structure import conv_difference, linear_difference, unwrapped
from .weights import bias_of, weight_of

MASKED_OUT = -1e4
"""Energies up to here get no weight in a softmax: the others are sums of A values in (-1, 1) times v."""


Weights = tuple[AttentionWeights, Tensor | None]
"""And the bias of v."""


def _attend(
    module: nn.Module,
    read: Callable[[Any], Weights],
    query: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    weights_cat: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`kernels.location_attention` with the weights that `read` finds in the module."""
    weights, v_bias = read(module)
    return kernels.location_attention(
        query, memory, processed_memory, weights_cat, *weights, mask, v_bias=v_bias, **options
    )


def _fits(query: Tensor, memory: Tensor, processed_memory: Tensor, mask: Tensor | None) -> bool:
    """Whether the tensors are [B, n_query], [B, T, n_memory], [B, T, A] and bool [B, T]."""
    return (
        memory.dim() == processed_memory.dim() == 3
        and processed_memory.shape[:2] == memory.shape[:2]
        and query.dim() == 2
        and len(query) == len(memory)
        and (mask is None or (mask.dtype == torch.bool and mask.shape == memory.shape[:2]))
    )


# NVIDIA's: the caller has the state


def family_weights(module: Any) -> Weights:
    """(weights, bias of v) of an Attention of NVIDIA's Tacotron 2 and its family."""
    location, v = module.location_layer, unwrapped(module.v)
    weights = AttentionWeights(
        weight_of(unwrapped(module.query_layer)),
        weight_of(unwrapped(location.location_conv)),
        weight_of(unwrapped(location.location_dense)),
        weight_of(v),
    )
    return weights, bias_of(v)


def masks_out(module: Any) -> bool:
    """Whether padding gets no attention: also with a finite value for its energies, as NVIDIA's training in float16
    sets."""
    value = module.score_mask_value
    return isinstance(value, (int, float)) and value <= MASKED_OUT


def _family_forward(
    module: Any,
    original: Callable[..., Any],
    attention_hidden_state: Tensor,
    memory: Tensor,
    processed_memory: Tensor,
    attention_weights_cat: Tensor,
    mask: Tensor | None,
    *forced: Tensor | None,
    **keywords: Tensor | None,
) -> Any:
    """`forced` and `keywords`: Mellotron's attention weights to use instead."""
    query = attention_hidden_state
    fits = (
        _fits(query, memory, processed_memory, mask)
        and attention_weights_cat.shape == (len(memory), 2, memory.shape[1])
        and (mask is None or masks_out(module))
        and all(x is None for x in (*forced, *keywords.values()))
    )
    if not fits:
        return original(query, memory, processed_memory, attention_weights_cat, mask, *forced, **keywords)
    return _attend(module, family_weights, query, memory, processed_memory, attention_weights_cat, mask)


def _family_claims(module: nn.Module) -> bool:
    return module._modules.keys() == {"query_layer", "memory_layer", "v", "location_layer"}


def family_difference(module: Any) -> str | None:
    if not isinstance(getattr(module, "score_mask_value", None), (int, float)):
        return "it has no number score_mask_value"
    return _difference(module, module.location_layer, "location_conv")


def _difference(module: Any, location: nn.Module, conv_name: str) -> str | None:
    """Of NVIDIA's and coqui's layers."""
    missing = {conv_name, "location_dense"} - location._modules.keys()
    if missing:
        return f"location_layer has no {sorted(missing)[0]}"
    conv, dense = unwrapped(getattr(location, conv_name)), unwrapped(location.get_submodule("location_dense"))
    query = unwrapped(module.query_layer)
    difference = linear_difference("query_layer", query, None, bias=False)
    if difference:
        return difference
    n_filters = getattr(conv, "out_channels", 0)
    return (
        conv_difference(conv_name, conv, 2, n_filters)
        or (f"{conv_name} has a bias" if conv.bias is not None else None)
        or linear_difference("location_dense", dense, query.out_features, bias=False)  # type: ignore[arg-type]
        or linear_difference("v", unwrapped(module.v), 1)
    )


def _example(n_query: int, n_memory: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two items: queries, memory, weights [2, 7] and where there is padding."""
    weights = torch.rand(2, 7).softmax(1)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    return torch.randn(2, n_query), torch.randn(2, 7, n_memory), weights, padding


def _family_calls(module: Any) -> Iterator[Call]:
    query, memory, weights, padding = _example(
        unwrapped(module.query_layer).in_features,  # type: ignore[arg-type]
        unwrapped(module.memory_layer).in_features,  # type: ignore[arg-type]
    )
    cat = torch.stack((weights, 3 * weights.flip(1)), dim=1)
    yield lambda attention: attention(query, memory, attention.memory_layer(memory), cat, padding)


FAMILY_ATTENTION = Adapter(
    name="tacotron2_attention",
    op="location_attention",
    kind="an Attention of NVIDIA's Tacotron 2",
    claims=_family_claims,
    difference=family_difference,
    variants={"state of the caller": {"forward": _family_forward}},
    calls=_family_calls,
)


# coqui's: the module has the state


def _coqui_weights(module: Any) -> Weights:
    location, v = module.location_layer, unwrapped(module.v)
    weights = AttentionWeights(
        weight_of(unwrapped(module.query_layer)),
        weight_of(location.location_conv1d),
        weight_of(unwrapped(location.location_dense)),
        weight_of(v),
    )
    return weights, bias_of(v)


def _coqui_forward(
    module: Any,
    original: Callable[..., Any],
    query: Tensor,
    inputs: Tensor,
    processed_inputs: Tensor,
    mask: Tensor | None,
) -> Any:
    windowed = module.windowing and not module.training
    previous, cumulative = module.attention_weights, module.attention_weights_cum
    fits = (
        _coqui_difference(module) is None
        and not windowed
        and _fits(query, inputs, processed_inputs, mask)
        and previous.shape == cumulative.shape == inputs.shape[:2]
    )
    if not fits:
        return original(query, inputs, processed_inputs, mask)
    context, weights = _attend(
        module, _coqui_weights, query, inputs, processed_inputs, torch.stack((previous, cumulative), dim=1),
        None if mask is None else ~mask, normalization=module.norm,
    )  # fmt: skip
    module.update_location_attention(weights)
    module.attention_weights = weights
    return context


def _coqui_claims(module: nn.Module) -> bool:
    return {"query_layer", "inputs_layer", "v"} <= module._modules.keys() and hasattr(module, "windowing")


def _coqui_difference(module: Any) -> str | None:
    """Of the settings."""
    if not module.location_attention:
        return "location_attention is off"
    if module.forward_attn:
        return "forward_attn is on"
    if module.norm not in ("softmax", "sigmoid"):
        return f"norm is {module.norm!r}, must be 'softmax' or 'sigmoid'"
    return None


def _coqui_calls(module: Any) -> Iterator[Call]:
    query, inputs, _, padding = _example(
        unwrapped(module.query_layer).in_features,  # type: ignore[arg-type]
        unwrapped(module.inputs_layer).in_features,  # type: ignore[arg-type]
    )

    def frames(mask: Tensor | None) -> Call:
        def call(attention: Any) -> list[Tensor]:
            attention.init_states(inputs)
            processed = attention.preprocess_inputs(inputs)
            contexts = [attention(q, inputs, processed, mask) for q in (query, query.flip(0), -query)]
            return [*contexts, attention.attention_weights, attention.attention_weights_cum]

        return call

    yield frames(~padding)
    yield frames(None)


COQUI_ATTENTION = Adapter(
    name="coqui_attention",
    op="location_attention",
    kind="an OriginalAttention of coqui",
    claims=_coqui_claims,
    difference=lambda module: (
        _coqui_difference(module) or _difference(module, module.location_layer, "location_conv1d")  # type: ignore[arg-type]
    ),
    variants={"state of the module": {"forward": _coqui_forward}},
    calls=_coqui_calls,
)


# ESPnet's: the convolution reads one kind of weights, the caller's


def _espnet_weights(module: Any) -> Weights:
    conv = weight_of(module.loc_conv).squeeze(2)
    both = torch.cat((conv, torch.zeros_like(conv)), dim=1)
    v = module.gvec
    return AttentionWeights(weight_of(module.mlp_dec), both, weight_of(module.mlp_att), weight_of(v)), bias_of(v)


def _padding(lengths: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """[B, longest] bool, True beyond an item's length."""
    lengths = torch.as_tensor(lengths)
    return (torch.arange(int(lengths.max()), device=lengths.device) >= lengths.unsqueeze(1)).to(device)


def _espnet_forward(
    module: Any,
    original: Callable[..., Any],
    enc_hs_pad: Tensor,
    enc_hs_len: Sequence[int] | Tensor,
    dec_z: Tensor | None,
    att_prev: Tensor | None,
    scaling: float = 2.0,
    last_attended_idx: int | None = None,
    *window: int,
    **keywords: Any,
) -> Any:
    """`window` and `keywords` are for `last_attended_idx`."""
    if last_attended_idx is not None or scaling <= 0:
        return original(enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling, last_attended_idx, *window, **keywords)
    B = len(enc_hs_pad)
    if module.pre_compute_enc_h is None or module.han_mode:
        module.enc_h = enc_hs_pad
        module.h_length = enc_hs_pad.shape[1]
        module.pre_compute_enc_h = module.mlp_enc(enc_hs_pad)
    if module.mask is None:
        module.mask = _padding(enc_hs_len, enc_hs_pad.device)
    query = enc_hs_pad.new_zeros(B, module.dunits) if dec_z is None else dec_z.view(B, module.dunits)
    if not _fits(query, module.enc_h, module.pre_compute_enc_h, module.mask):
        return original(enc_hs_pad, enc_hs_len, dec_z, att_prev, scaling)
    if att_prev is None:
        valid = (~_padding(enc_hs_len, query.device)).to(query.dtype)
        att_prev = valid / torch.as_tensor(enc_hs_len, dtype=query.dtype, device=query.device).unsqueeze(1)
    cat = att_prev.view(B, 1, module.h_length).expand(B, 2, module.h_length)
    return _attend(
        module, _espnet_weights, query, module.enc_h, module.pre_compute_enc_h, cat, module.mask,
        sharpening=float(scaling),
    )  # fmt: skip


def _espnet_claims(module: nn.Module) -> bool:
    return module._modules.keys() == {"mlp_enc", "mlp_dec", "mlp_att", "loc_conv", "gvec"}


def _espnet_difference(module: Any) -> str | None:
    conv = module.loc_conv
    if not isinstance(conv, nn.Conv2d):
        return f"loc_conv is a {type(conv).__name__}, must be a Conv2d"
    taps = conv.kernel_size[1]
    expected = {
        "in_channels": 1,
        "kernel_size": (1, taps),
        "padding": (0, (taps - 1) // 2),
        "stride": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
        "bias": None,
    }
    for option, value in expected.items():
        if getattr(conv, option) != value:
            return f"loc_conv has {option}={getattr(conv, option)}, must be {value}"
    if taps % 2 == 0:
        return f"loc_conv has kernel_size={conv.kernel_size}, must be odd"
    A = module.mlp_dec.out_features
    return (
        linear_difference("mlp_dec", module.mlp_dec, A, bias=False)
        or linear_difference("mlp_att", module.mlp_att, A, bias=False)
        or linear_difference("mlp_enc", module.mlp_enc, A)
        or linear_difference("gvec", module.gvec, 1)
    )


def _espnet_calls(module: Any) -> Iterator[Call]:
    query, memory, _, _ = _example(module.mlp_dec.in_features, module.mlp_enc.in_features)
    lengths = [7, 4]

    def frames(attention: Any) -> list[Tensor]:
        attention.reset()
        context, weights = attention(memory, lengths, None, None)
        further = attention(memory, lengths, query, weights)
        return [
            context,
            weights,
            *further,
            *attention(memory, lengths, query.flip(0), further[1] + weights, scaling=1.0),
        ]

    yield frames


ESPNET_ATTENTION = Adapter(
    name="espnet_attention",
    op="location_attention",
    kind="an AttLoc of ESPnet",
    claims=_espnet_claims,
    difference=_espnet_difference,
    variants={"convolution of one kind of weights": {"forward": _espnet_forward}},
    calls=_espnet_calls,
    prepare=lambda module: module.reset(),
)
