"""Decoders of NVIDIA's Tacotron 2 and its family in inference: the whole loop, with fastglow's noise for the prenet.

The noise is of another generator, whose seeds come from PyTorch's; results have no gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastglow import kernels
from fastglow.kernels import backend
from fastglow.kernels.decoder_weights import OutputWeights
from fastglow.modules.parameter_cache import ParameterCache, parameters_of

from .adapter import Adapter, Call, Method
from .decoder import OnCPU, example, teacher_forced, teacher_forced_calls
from .decoder_parts import (
    Settings,
    claims_decoder,
    decoder_difference,
    loop_fits,
    output_weights,
    p_prenet_dropout,
    prenet_weights,
    recurrent_weights,
    settings_of,
    state_dropout,
    weights_dtype,
)
from .structure import unwrapped
from .swapping import Swapped, remember_parts, state_of

PIECE_STEPS = 16
"""Steps between looks at the gates of a batch: so many may be decoded in vain."""

NEVER = 1.0
"""A threshold that no sigmoid is above."""


class _Decoded(NamedTuple):
    frames: Tensor  # [B, steps, n_frame]
    gates: Tensor  # [B, steps]
    alignments: Tensor  # [B, steps, T]
    before_gate: Tensor  # [B] int64, steps before the one whose gate fired; all steps where none did
    fired: bool  # whether every item's gate did


def _with_gate(output: OutputWeights) -> OutputWeights:
    """The gate as one more element of a frame, which the prenet does not see: these decoders return it."""
    first, *others = output.prenet
    return OutputWeights(
        (F.pad(first, (0, 1)), *others),
        torch.cat((output.projection, output.gate)),
        torch.cat((output.projection_bias, output.gate_bias)),
        output.gate,
        output.gate_bias,
    )


def _decode(decoder: Any, memory: Tensor, lengths: Tensor) -> _Decoded:
    """Until every item's gate has fired. Items that ended before go on, as they do in these decoders."""
    settings, B = settings_of(decoder), len(memory)
    recurrent, output = recurrent_weights(decoder), _with_gate(output_weights(decoder))
    caches = state_of(decoder)

    def cached(name: str, build: Callable[[], Any], dtype: torch.dtype) -> Any:
        cache: ParameterCache[Any] = caches.setdefault(name, ParameterCache())
        return cache.get(parameters_of(decoder), build, dtype)

    arguments: tuple[Any, ...] = (
        memory,
        decoder.attention_layer.memory_layer(memory),
        lengths,
        torch.randint(2**62, (B,), device=memory.device),
        recurrent,
        output,
    )
    options: dict[str, Any] = dict(
        p_prenet_dropout=p_prenet_dropout(decoder.prenet),
        max_steps=settings.max_steps,
        folded=lambda dtype: cached("folded", lambda: kernels.fold_decoder(recurrent, output, dtype), dtype),
        packed=lambda dtype: cached("packed", lambda: kernels.pack_decoder(recurrent, output, dtype), dtype),
    )
    threshold = float(decoder.gate_threshold)
    if B == 1 and settings.early_stopping:
        frames, steps, alignments = kernels.decode_loop(*arguments, gate_threshold=threshold, **options)
        return _Decoded(frames[..., :-1], frames[..., -1], alignments, steps, bool(steps[0] < frames.shape[1]))
    pieces = kernels.decode_pieces(*arguments, gate_threshold=NEVER, piece_steps=PIECE_STEPS, **options)
    frames, alignments, fired = [], [], torch.zeros(B, 0, dtype=torch.bool, device=memory.device)
    for piece in pieces:
        frames.append(piece.frames)
        alignments.append(piece.alignments)
        fired = torch.cat((fired, torch.sigmoid(piece.frames[..., -1].float()) > threshold), dim=1)
        if settings.early_stopping and bool(fired.any(dim=1).all()):
            pieces.close()
            break
    ended, first = fired.max(dim=1)
    before_gate = torch.where(ended, first, fired.shape[1])
    n = fired.shape[1]
    if settings.early_stopping and bool(ended.all()):
        n = int(first.max()) + 1
    frame, alignment = torch.cat(frames, dim=1)[:, :n], torch.cat(alignments, dim=1)[:, :n]
    return _Decoded(frame[..., :-1], frame[..., -1], alignment, before_gate, bool(ended.all()))


Layout = Callable[[_Decoded, Tensor, Settings], tuple[tuple[Tensor, ...], bool]]
"""(what was decoded, mel [B, n_mels, frames], settings) -> (the results as the decoder gives them, whether it warns
that the steps were not enough)."""


def _free_running(layout: Layout) -> Method:
    """infer(memory, memory_lengths), or inference(memory) of one item."""

    def infer(
        module: Any, original: Callable[..., Any], memory: Tensor, memory_lengths: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        settings = settings_of(module)
        fits = loop_fits(module, memory, memory_lengths) and settings.max_steps > 0 and not any(state_dropout(module))
        if not fits or (memory_lengths is None and len(memory) > 1):
            return original(memory) if memory_lengths is None else original(memory, memory_lengths)
        if memory_lengths is None:
            memory_lengths = torch.full((1,), memory.shape[1], device=memory.device)
        autocast = backend.autocast_dtype(memory)
        with torch.no_grad():
            decoded = _decode(module, memory, memory_lengths)
            decoded = decoded._replace(
                frames=decoded.frames.to(autocast or memory.dtype),
                gates=decoded.gates.to(autocast or memory.dtype),
                alignments=decoded.alignments.to(weights_dtype(memory)),
            )
            mel = decoded.frames.reshape(len(memory), -1, settings.n_mels).transpose(1, 2)
            results, warns = layout(decoded, mel, settings)
        if warns:
            _warn_as(original)
        return results

    return infer


def _inference(x: _Decoded, mel: Tensor, settings: Settings) -> tuple[tuple[Tensor, ...], bool]:
    """NVIDIA's."""
    return (mel, x.gates.unsqueeze(2), x.alignments), not x.fired


def _infer_before_gate(x: _Decoded, mel: Tensor, settings: Settings) -> tuple[tuple[Tensor, ...], bool]:
    """DeepLearningExamples' and SpeechBrain's; steps and items are one dimension."""
    gates = x.gates.t().reshape(1, -1)
    warns = x.gates.shape[1] == settings.max_steps and not (settings.early_stopping and x.fired)
    return (mel, gates, _steps_and_items(x.alignments), x.before_gate.int()), warns


def _infer_with_gate(x: _Decoded, mel: Tensor, settings: Settings) -> tuple[tuple[Tensor, ...], bool]:
    """torchaudio's."""
    steps = x.gates.shape[1]
    lengths = (x.before_gate + 1).clamp(max=steps).int()
    return (mel, lengths, x.gates.contiguous(), _steps_and_items(x.alignments)), steps == settings.max_steps


def _steps_and_items(alignments: Tensor) -> Tensor:
    """[B, steps, T] -> [T, steps * B]."""
    return alignments.transpose(0, 1).flatten(0, 1).t().contiguous()


def _warn_as(method: Any) -> None:
    """In the method's own words and its own way; some say nothing."""
    code = unwrap(getattr(method, "__func__", method)).__code__
    for text in code.co_consts:
        if isinstance(text, str) and "max decoder steps" in text and "\n" not in text:
            if "print" in code.co_names:
                print(text)
            else:
                warnings.warn(text, stacklevel=3)


# Calls that compare


class _WithoutDropout(nn.Module):
    """A prenet whose dropout is off."""

    dropout = 0.0

    def __init__(self, prenet: Any):
        super().__init__()
        self.layers = prenet.layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


@torch.no_grad()
def _end_soon(decoder: Any, memory: Tensor, lengths: Tensor) -> None:
    """Sets the threshold so that the gates of all items fire within four steps, not all on the first."""
    processed, seeds = decoder.attention_layer.memory_layer(memory), torch.zeros_like(lengths)
    weights = recurrent_weights(decoder), _with_gate(output_weights(decoder))
    options: dict[str, Any] = dict(p_prenet_dropout=0.0, gate_threshold=NEVER, max_steps=4)
    gates = kernels.decode_loop(memory, processed, lengths, seeds, *weights, **options).frames[..., -1]
    if bool((gates <= gates[:, :1]).all()):
        gate = unwrapped(decoder.gate_layer)
        for parameter in gate.parameters():
            parameter.neg_()
        gates = -gates
    margin = 0.01 * (gates.max() - gates.min())
    decoder.gate_threshold = float(torch.sigmoid(gates.amax(1).min() - margin))
    setattr(decoder, "decoder_max_step" if hasattr(decoder, "decoder_max_step") else "max_decoder_steps", 8)
    for name in ("early_stopping", "decoder_early_stopping"):
        if hasattr(decoder, name):
            setattr(decoder, name, True)


def _calls(decoder: Any) -> Iterator[Call]:
    yield from teacher_forced_calls(decoder)
    memory, mels, lengths = example(decoder)
    x = mels.transpose(1, 2).reshape(-1, mels.shape[1] * decoder.n_frames_per_step)

    def prenet(decoder: Any) -> Tensor:
        own = decoder.prenet
        return kernels.prenet(x, prenet_weights(own), p_prenet_dropout(own)) if isinstance(decoder, Swapped) else own(x)

    yield prenet

    def infer(decoder: Any) -> Any:
        if decoder.training:  # then dropout of the states is on
            return []
        one_item = not hasattr(decoder, "infer")
        _end_soon(decoder, memory[:1] if one_item else memory, lengths[:1] if one_item else lengths)
        own, decoder.prenet = decoder.prenet, _WithoutDropout(decoder.prenet)
        remember_parts(decoder)
        try:
            with OnCPU():
                return decoder.inference(memory[:1]) if one_item else decoder.infer(memory, lengths)
        finally:
            decoder.prenet = own
            remember_parts(decoder)

    yield infer


def _difference(decoder: Any) -> str | None:
    if not hasattr(decoder, "infer") and not hasattr(decoder, "inference"):
        return "it has neither a method infer nor inference"
    return decoder_difference(decoder)


def _variant(name: str, layout: Layout) -> dict[str, Method]:
    return {"forward": teacher_forced, name: _free_running(layout)}


FREE_RUNNING = Adapter(
    name="free_running_decoder",
    op="decode_loop",
    kind="a Decoder of NVIDIA's Tacotron 2",
    claims=claims_decoder,
    difference=_difference,
    variants={
        "inference of one item": _variant("inference", _inference),
        "infer, lengths up to the gate": _variant("infer", _infer_before_gate),
        "infer, lengths with the gate's frame": _variant("infer", _infer_with_gate),
    },
    calls=_calls,
    draws_own_noise=True,
)
