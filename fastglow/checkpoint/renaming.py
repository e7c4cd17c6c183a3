"""Converts every source's names and structures to the canonical ones (NVIDIA's), exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastglow.errors import FastglowError
from fastglow.modules.convolution import unify_weight_norm
from fastglow.modules.wn_names import unify_layers

from .layouts import usable_hint
from .records import show
from .sources import Source, UnsupportedModel

State = dict[str, Tensor]


class CanonicalState(NamedTuple):
    """A model under canonical names.

    Attributes:
        state: the state_dict.
        hints: constructor keywords from the source that the shapes do not determine.
        notes: what users should know about the conversion.
    """

    state: State
    hints: dict[str, Any]
    notes: list[str]


# torchaudio's names are NVIDIA's without the wrappers `.conv` and `.linear_layer`.
_TORCHAUDIO = (
    (
        re.compile(r"((?:encoder|postnet)\.convolutions\.\d+\.0|.*\.location_conv)\.(weight|bias)"),
        r"\1.conv.\2",
    ),
    (
        re.compile(
            r"(.*\.prenet\.layers\.\d+|.*\.(?:query_layer|memory_layer|v|location_dense)"
            r"|decoder\.(?:linear_projection|gate_layer))\.(weight|bias)"
        ),
        r"\1.linear_layer.\2",
    ),
)
_COQUI = (
    (re.compile(r"((?:encoder|postnet)\.convolutions\.\d+)\.convolution1d\.(.*)"), r"\1.0.conv.\2"),
    (re.compile(r"((?:encoder|postnet)\.convolutions\.\d+)\.batch_normalization\.(.*)"), r"\1.1.\2"),
    (re.compile(r"decoder\.prenet\.linear_layers\.(.*)"), r"decoder.prenet.layers.\1"),
    (re.compile(r"decoder\.attention\.inputs_layer\.(.*)"), r"decoder.attention_layer.memory_layer.\1"),
    (
        re.compile(r"decoder\.attention\.location_layer\.location_conv1d\.(.*)"),
        r"decoder.attention_layer.location_layer.location_conv.conv.\1",
    ),
    (re.compile(r"decoder\.attention\.(.*)"), r"decoder.attention_layer.\1"),
)
_NEMO = (
    (re.compile(r"text_embedding\.(.*)"), r"embedding.\1"),
    (re.compile(r"waveglow\.wavenet\.(.*)"), r"WN.\1"),
    (re.compile(r"waveglow\.(.*)"), r"\1"),
)
_FLOW = re.compile(r"WN\.\d{1,6}\.")
_NORMED = re.compile(r"(start|(in|cond|res_skip)_layers\.\d+)\.")


def _rename(state: Mapping[str, Tensor], rules: tuple[tuple[re.Pattern[str], str], ...]) -> State:
    renamed: State = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            if match := pattern.fullmatch(key):
                key = match.expand(replacement)
                break
        renamed[key] = tensor
    return renamed


def _torchaudio(state: State, _config: Mapping[str, Any]) -> CanonicalState:
    return CanonicalState(_rename(state, _TORCHAUDIO), {}, [])


def _nemo(state: State, config: Mapping[str, Any]) -> CanonicalState:
    state = _rename(state, _NEMO)
    return CanonicalState(state, {}, []) if "embedding.weight" in state else _waveglow(state, config)


def _coqui(state: State, config: Mapping[str, Any]) -> CanonicalState:
    """coqui's Tacotron 2 with location-sensitive attention and one frame per step.

    Its stop token is linear in (decoder hidden state, predicted frame), and the frame is linear in (decoder hidden
    state, context), so the two fold into NVIDIA's gate layer.
    """
    _refuse_other_coqui(config)
    state = _rename({k: v for k, v in state.items() if not k.startswith("decoder_backward.")}, _COQUI)
    notes = []
    if config.get("attention_norm") is None:
        notes.append("attention_norm is unknown: softmax is assumed, although coqui's default is sigmoid")
    # Adds a constant to every energy, which the softmax cancels.
    state.pop("decoder.attention_layer.v.linear_layer.bias", None)
    _fold_prenet(state)
    _fold_stopnet(state)

    dropout = config.get("prenet_dropout", True) and config.get("prenet_dropout_at_inference", False)
    hints: dict[str, Any] = {"p_prenet_dropout": 0.5 if dropout else 0.0, "gate_threshold": 0.5}
    if not dropout:
        notes.append("its prenet has no dropout at inference: p_prenet_dropout is 0")
    steps = config.get("max_decoder_steps", 10000)
    if usable_hint("tacotron2", "max_decoder_steps", steps):
        hints["max_decoder_steps"] = steps
    notes.append("coqui scales mel spectrograms in its own way: a WaveGlow needs them converted")
    return CanonicalState(state, hints, notes)


def _refuse_other_coqui(config: Mapping[str, Any]) -> None:
    """Refuses options of coqui's configuration that change the model but no tensor."""
    refused = (
        ("attention_norm", "softmax", "NVIDIA's attention is a softmax"),
        ("attention_type", "original", "only location-sensitive attention is supported"),
        ("use_forward_attn", False, "forward attention is not supported"),
        ("location_attn", True, "only location-sensitive attention is supported"),
        ("use_speaker_embedding", False, "multi-speaker models are not supported"),
        ("use_d_vector_file", False, "multi-speaker models are not supported"),
    )
    for name, supported, why in refused:
        if config.get(name, supported) not in (supported, None):
            raise UnsupportedModel(f"coqui configuration {name}={show(config[name])}: {why}")
    r = config.get("r")
    if isinstance(r, int) and r > 1:
        raise UnsupportedModel(f"coqui model with r={r} frames per step: only r=1 is NVIDIA's model")


def _fold_prenet(state: State) -> None:
    """Folds batch normalisation after a prenet layer, which has no bias, into its weight if it adds no bias."""
    for i in range(2):
        layer = f"decoder.prenet.layers.{i}"
        norm = {
            name: state.pop(f"{layer}.batch_normalization.{name}")
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            if f"{layer}.batch_normalization.{name}" in state
        }
        if not norm:
            continue
        weight = state.get(f"{layer}.linear_layer.weight")
        names = ("weight", "bias", "running_mean", "running_var")
        if (
            weight is None
            or weight.dim() != 2
            or any(n not in norm or norm[n].shape != weight.shape[:1] for n in names)
        ):
            raise FastglowError(f"key '{layer}.batch_normalization' is incomplete or of the wrong shape")
        scale = norm["weight"].double() / (norm["running_var"].double() + 1e-5).sqrt()
        if torch.count_nonzero(norm["bias"].double() - norm["running_mean"].double() * scale):
            raise UnsupportedModel(
                f"coqui prenet_type=bn: '{layer}.batch_normalization' adds a bias, which NVIDIA's prenet does not have"
            )
        state[f"{layer}.linear_layer.weight"] = (weight.double() * scale.unsqueeze(1)).to(weight.dtype)


def _fold_stopnet(state: State) -> None:
    """stop = W_h h + W_o (P [h; c] + p) + b, so the gate's weight is [W_h, 0] + W_o P, its bias b + W_o p."""
    prefix = "decoder.stopnet.1.linear_layer"
    for name in ("weight", "bias"):
        if f"{prefix}.{name}" not in state:
            raise FastglowError(f"key '{prefix}.{name}' is missing: without it the decoder cannot tell when to stop")
    stop_weight, stop_bias = state.pop(f"{prefix}.weight"), state.pop(f"{prefix}.bias")
    matrix = state.get("decoder.linear_projection.linear_layer.weight")
    offset = state.get("decoder.linear_projection.linear_layer.bias")
    hidden = state.get("decoder.decoder_rnn.weight_hh")
    if matrix is None or offset is None or hidden is None or matrix.dim() != 2 or hidden.dim() != 2:
        return  # reported with the other missing and misshapen keys
    n_frame, n_in = matrix.shape
    if tuple(offset.shape) != (n_frame,):
        return
    postnet = state.get("postnet.convolutions.0.0.conv.weight")
    if postnet is not None and postnet.dim() == 3 and n_frame != postnet.shape[1]:
        raise UnsupportedModel(
            f"coqui model with r={n_frame / postnet.shape[1]:g} frames per step "
            f"('decoder.linear_projection.linear_layer.weight' has {n_frame} rows for {postnet.shape[1]} mel "
            "channels): only r=1 is NVIDIA's model"
        )
    n_hidden = hidden.shape[1]
    expected = (1, n_hidden + n_frame)
    if tuple(stop_weight.shape) != expected or tuple(stop_bias.shape) != (1,) or n_hidden > n_in:
        found = list(stop_weight.shape)
        raise FastglowError(f"key '{prefix}.weight' has the wrong shape: expected {list(expected)}, found {found}")
    dtype, weight = stop_weight.dtype, stop_weight.double()
    gate = weight[:, n_hidden:] @ matrix.double()
    gate[:, :n_hidden] += weight[:, :n_hidden]
    bias = stop_bias.double() + weight[:, n_hidden:] @ offset.double()
    state["decoder.gate_layer.linear_layer.weight"] = gate.to(dtype)
    state["decoder.gate_layer.linear_layer.bias"] = bias.to(dtype)


def _waveglow(state: State, _config: Mapping[str, Any]) -> CanonicalState:
    result: State = {}
    flows: dict[str, State] = {}
    for key, tensor in state.items():
        if match := _FLOW.match(key):
            flows.setdefault(match[0], {})[key.removeprefix(match[0])] = tensor
        else:
            result[key] = tensor
    for prefix, tensors in flows.items():
        tensors = unify_layers(tensors, prefix)
        for layer in {match[0] for key in tensors if (match := _NORMED.match(key))}:
            _check_weight(tensors, layer, prefix)
            unify_weight_norm(tensors, layer)
        result.update((prefix + key, tensor) for key, tensor in tensors.items())
    return CanonicalState(result, {}, [])


def _check_weight(state: State, layer: str, prefix: str) -> None:
    weight = state.get(f"{layer}weight")
    if weight is not None and weight.dim() != 3:
        raise FastglowError(
            f"key '{prefix}{layer}weight' has the wrong shape: expected [?, ?, ?], found {list(weight.shape)}"
        )


_RULES: dict[str, Callable[[State, Mapping[str, Any]], CanonicalState]] = {
    "nvidia": lambda state, _config: CanonicalState(state, {}, []),
    "torchaudio": _torchaudio,
    "coqui": _coqui,
    "nemo": _nemo,
    "waveglow": _waveglow,
}


def canonical_state(source: Source, state: Mapping[str, Tensor]) -> CanonicalState:
    """The state_dict under canonical names, with the hints and notes of `source` and of its names.

    Args:
        source: from `identify`.
        state: its tensors; on the meta device if only shapes matter (coqui's never are).

    Raises:
        FastglowError: a tensor that a rule needs is missing or has another shape, or coqui's configuration
            asks for something that NVIDIA's model does not have.
    """
    result, hints, notes = _RULES[source.names](dict(state), source.foreign_config or {})
    for key in list(result):
        if source.model == "tacotron2" and (stem := key.removesuffix(".running_var")) != key:
            # Files from before torch 0.4.1 lack batch normalisation's step counter.
            counter = torch.zeros((), dtype=torch.int64, device=result[key].device)
            result.setdefault(f"{stem}.num_batches_tracked", counter)
    return CanonicalState(result, {**source.hints, **hints}, [*source.notes, *notes])
