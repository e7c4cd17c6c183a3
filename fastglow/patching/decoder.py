"""Decoders of NVIDIA's Tacotron 2 and its family under teacher forcing: all frames in one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastglow import kernels
from fastglow.kernels import backend

from .adapter import Adapter, Call
from .decoder_parts import (
    claims_decoder,
    decoder_difference,
    loop_fits,
    recurrent_weights,
    settings_of,
    state_dropout,
    weights_dtype,
)
from .structure import unwrapped


def teacher_forced(module: Any, original: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """forward(memory [B, T_in, D], mels [B, n_mels, T], memory_lengths [B]), whose second argument has other names
    elsewhere -> (mel [B, n_mels, T], gates [B, steps], alignments [B, steps, T_in])."""
    memory, mels, lengths = signature(original).bind(*args, **keywords).arguments.values()
    n_mels, per_step = settings_of(module).n_mels, module.n_frames_per_step
    B, n_frames = len(mels), mels.shape[-1]
    fits = mels.shape == (len(memory), n_mels, n_frames) and n_frames > 0 and n_frames % per_step == 0
    p_attention_dropout, p_decoder_dropout = state_dropout(module)
    draws = p_attention_dropout > 0 or p_decoder_dropout > 0
    if not fits or not loop_fits(module, memory, lengths) or (draws and not _draws_alike(memory)):
        return original(*args, **keywords)
    steps = mels.transpose(1, 2).reshape(B, -1, n_mels * per_step).transpose(0, 1)
    first = memory.new_zeros(1, B, n_mels * per_step)
    # The last frame is never an input: it is there because its dropout draws random numbers.
    inputs = module.prenet(torch.cat((first, steps)))[:-1]
    hidden_contexts, alignments = kernels.teacher_forced_loop(
        inputs, memory, module.attention_layer.memory_layer(memory), lengths, recurrent_weights(module),
        p_attention_dropout=p_attention_dropout, p_decoder_dropout=p_decoder_dropout,
    )  # fmt: skip
    mel = module.linear_projection(hidden_contexts).reshape(B, n_frames, n_mels).transpose(1, 2)
    return mel, module.gate_layer(hidden_contexts).squeeze(2), alignments.to(weights_dtype(memory))


def _draws_alike(memory: Tensor) -> bool:
    """Whether the loop drops what the decoder would for the same state of PyTorch's generator: the reference draws a
    mask for each frame and LSTM, in the same order; the kernels have a generator of their own."""
    on_reference = memory.is_cpu and backend.backend_name() != backend.TRITON
    return on_reference and memory.dtype == torch.float32 and backend.autocast_dtype(memory) is None


class OnCPU(TorchFunctionMode):
    """Inside, `torch.arange` writes to no GPU: NVIDIA's decoder makes masks on one, also for memory on a CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        if function is torch.arange and keywords.get("out") is not None and keywords["out"].is_cuda:
            keywords["dtype"] = keywords.pop("out").dtype
        return function(*args, **keywords)


def example(decoder: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Memory [2, 5, D], mels of three steps, and lengths."""
    n_memory: Any = unwrapped(decoder.attention_layer.memory_layer).in_features
    n_mels = settings_of(decoder).n_mels
    return (
        torch.randn(2, 5, n_memory),
        torch.randn(2, n_mels, 3 * decoder.n_frames_per_step),
        torch.tensor([5, 3]),
    )


def teacher_forced_calls(decoder: Any) -> Iterator[Call]:
    inputs = example(decoder)

    def call(decoder: Any) -> Any:
        with OnCPU():
            return decoder(*inputs)

    yield call


TEACHER_FORCED = Adapter(
    name="teacher_forced_decoder",
    op="teacher_forced_loop",
    kind="a Decoder of NVIDIA's Tacotron 2",
    claims=claims_decoder,
    difference=decoder_difference,
    variants={"all frames together": {"forward": teacher_forced}},
    calls=teacher_forced_calls,
)
