"""Tacotron 2's free-running decoder: the latency of a frame, at the published sizes with random weights.

A call decodes a fixed number of frames, because with a threshold of 1 no gate fires, and ends with a host sync, as
inference does. fastglow's methods `graph` and `persistent` are separate cases, each with the eager reference. Only
`graph` has NVIDIA's code and torch.compile of a plain PyTorch frame too; torch.compile has fewer sizes, because it
compiles for each. On a CPU the weights are those that fastglow packs, in bfloat16, float32 or 8 bits.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import Tacotron2, kernels
from fastglow.kernels.arguments import dtype_name
from fastglow.kernels.backend import CPU_DTYPES
from fastglow.kernels.cpu import fast_dtype, pack_decoder
from fastglow.kernels.decode_loop import decode_loop, fold_decoder

from . import plain_tacotron2, tacotron2_model
from .environment import device
from .workload import (
    COMPILE,
    FASTGLOW,
    INFERENCE,
    PEER,
    Cost,
    Implementation,
    Workload,
    cases,
    largest_error,
    launching,
    on_this_machine,
)

P_DROPOUT = 0.5
FRAMES = 128  # per call
CHECKED_FRAMES = 16  # the first ones; all later frames depend on them

GRAPH, PERSISTENT, ON_A_CPU = "graph", "persistent", "cpu"
TARGETS = {GRAPH: 25, PERSISTENT: 12}  # microseconds per frame of one item in float16
CPU_TARGETS: dict[str, dict[str, float]] = {
    "bfloat16": {"us_per_frame": 1500, "times_peer": 3.5},
    "int8": {"us_per_frame": 700},
}


@lru_cache
def new_model(small: bool, frames: int, dtype: torch.dtype) -> Tacotron2:
    torch.manual_seed(0)
    with torch.device(device()):
        model = Tacotron2(**tacotron2_model.SMALL if small else {}, max_decoder_steps=frames, gate_threshold=1.0)
    return model.to(dtype).eval().requires_grad_(False)


class SeededPrenet(nn.Module):
    """NVIDIA's prenet with our random numbers; each call is the next frame."""

    def __init__(self, prenet: nn.Module, seeds: Tensor):
        super().__init__()
        self.layers, self.seeds, self.frame = list(prenet.get_submodule("layers").children()), seeds, 0

    def forward(self, x: Tensor) -> Tensor:
        for stream, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            noise = kernels.uniform_noise(self.seeds, stream, self.frame, 1, x.shape[1])[:, 0]
            x = x * (noise >= P_DROPOUT) / (1 - P_DROPOUT)
        self.frame += 1
        return x


@dataclass(frozen=True)
class Decoding(Workload):
    """`method`: GRAPH, PERSISTENT or ON_A_CPU; `text`: symbols of each of `batch` items; `lstm_weights`: as of
    `pack_decoder`."""

    case: str
    method: str
    batch: int
    text: int
    dtype: torch.dtype
    small: bool = False
    n_frames: int = FRAMES
    lstm_weights: torch.dtype | None = None

    op = "decode_loop"
    directions = (INFERENCE,)

    @property
    def model(self) -> Tacotron2:
        return new_model(self.small, self.n_frames, self.dtype)

    @property
    def dtype_name(self) -> str:
        return dtype_name(self.lstm_weights or self.dtype)

    @property
    def ceiling(self) -> str:
        return dtype_name(self.dtype)

    def supports(self, implementation: str) -> bool:
        if self.lstm_weights is not None:
            return implementation == FASTGLOW
        if implementation != COMPILE:
            return implementation != PEER or self.method != PERSISTENT
        if self.method == ON_A_CPU:
            return self.batch == 1
        return self.method == GRAPH and self.dtype == torch.float16 and (self.batch == 1 or self.text == 128)

    def beside(self) -> "Sequence[Decoding]":
        if self.small:
            return ()
        others = [replace(self, dtype=torch.float32)] if self.dtype != torch.float32 else []
        return [*others, replace(self, lstm_weights=torch.int8)]

    def shapes(self) -> dict[str, list[int]]:
        return {"memory": list(self._memory().shape)}

    def cost(self, direction: str) -> Cost:
        """Every frame reads the weights and the memory it attends to; none of it is assumed to stay on chip."""
        recurrent, output, _ = plain_tacotron2.weights_of(self.model.decoder)
        weights = tacotron2_model.decoder_weights(self.model)
        A, _, taps = len(recurrent.attention.query), *recurrent.attention.location_conv.shape[1:]
        D = self._memory().shape[2]
        read = weights + self.batch * self.text * (D + A)
        products = self.batch * (weights + self.text * ((2 * taps + 1) * A + D))
        per_frame = read * self.dtype.itemsize
        if self.lstm_weights is not None:
            in_lstms = sum(
                x.numel() for x in plain_tacotron2.tensors_of((recurrent.attention_rnn, recurrent.decoder_rnn))
            )
            per_frame += in_lstms * (self.lstm_weights.itemsize - self.dtype.itemsize)
        return Cost(self.n_frames * per_frame, self.n_frames * 2 * products, reread=per_frame)

    def capturable(self, direction: str) -> bool:
        return False  # the host reads how many steps each item took

    def frames(self, direction: str) -> int:
        return self.batch * self.n_frames

    def steps(self, direction: str) -> int:
        return self.n_frames

    def targets(self, direction: str) -> dict[str, float]:
        if self.batch != 1 or self.small:
            return {}
        if self.method == ON_A_CPU:
            return CPU_TARGETS.get(self.dtype_name, {})
        return {"us_per_frame": TARGETS[self.method]} if self.dtype == torch.float16 else {}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], object]:
        return self._run(implementation, self._memory())

    @torch.no_grad()
    def verify(self, implementation: Implementation, direction: str) -> float:
        memory = self._memory()
        seeds = torch.arange(self.batch, device=device()) - 1
        with launching(implementation):
            actual = self._run(implementation, memory, seeds)()
        frames = actual[0].shape[1]
        assert frames == self.n_frames, f"got {frames} frames, not {self.n_frames}"
        checked = min(CHECKED_FRAMES, frames)
        usual = self._plain(self.model if self.lstm_weights is None else in_8_bits(self.model), memory, seeds, checked)
        exact = self._plain(copy.deepcopy(self.model).double(), memory.double(), seeds, checked)
        n = len(actual)
        return largest_error([x[:, :checked] for x in actual], usual[:n], exact[:n], direction)

    def item(self, direction: str, alone: bool) -> Sequence[Tensor]:
        items = max(2, self.batch)
        memory = self._memory(items)
        processed = self._processed(memory)  # by PyTorch, whose bits depend on the batch
        n = 1 if alone else items
        return [x[:1] for x in self._run(Implementation(FASTGLOW), memory[:n], processed_memory=processed[:n])()]

    def _memory(self, batch: int | None = None) -> Tensor:
        shape = batch or self.batch, self.text, self.model.config.encoder_embedding_dim
        return torch.randn(shape, device=device()).mul(0.5).to(self.dtype)

    def _processed(self, memory: Tensor) -> Tensor:
        _, _, memory_weight = plain_tacotron2.weights_of(self.model.decoder)
        return F.linear(memory, memory_weight)

    def _lengths(self, batch: int) -> Tensor:
        return torch.full((batch,), self.text, device=device())

    def _plain(
        self, model: Tacotron2, memory: Tensor, seeds: Tensor | None, frames: int, step=plain_tacotron2.free_step
    ) -> Sequence[Tensor]:
        recurrent, output, memory_weight = plain_tacotron2.weights_of(model.decoder)
        attended = plain_tacotron2.attend(memory, memory_weight, self._lengths(len(memory)))
        return plain_tacotron2.run_free(attended, recurrent, output, P_DROPOUT, frames, seeds, step)

    def _run(
        self,
        implementation: Implementation,
        memory: Tensor,
        seeds: Tensor | None = None,
        processed_memory: Tensor | None = None,
    ) -> Callable[[], Sequence[Tensor]]:
        """Returns frames [B, frames, n_frame], and alignments except with NVIDIA's code.

        Without given seeds, fastglow draws its own and the others use PyTorch's generator, as in normal use.
        """
        model, lengths = self.model, self._lengths(len(memory))
        if implementation.name == COMPILE:
            step = torch.compile(plain_tacotron2.free_step, dynamic=False)
            return lambda: self._plain(model, memory, seeds, self.n_frames, step)
        if implementation.name == PEER:
            decoder: Any = implementation.nvidia.tacotron2(model).get_submodule("decoder")
            if seeds is not None:
                decoder.prenet = SeededPrenet(decoder.prenet, seeds)
            return torch.no_grad()(lambda: [decoder.infer(memory, lengths)[0].transpose(1, 2)])
        recurrent, output, _ = plain_tacotron2.weights_of(model.decoder)
        folded = packed = None
        if implementation.name == FASTGLOW and self.method == ON_A_CPU:
            packed = pack_decoder(recurrent, output, self.dtype, self.lstm_weights)
        elif implementation.name == FASTGLOW:
            folded = fold_decoder(recurrent, output)
        seeds = torch.arange(len(memory), device=device()) if seeds is None else seeds
        processed = self._processed(memory) if processed_memory is None else processed_memory

        def run() -> Sequence[Tensor]:
            frames, steps, alignments = decode_loop(
                memory,
                processed,
                lengths,
                seeds,
                recurrent,
                output,
                p_prenet_dropout=P_DROPOUT,
                gate_threshold=1.0,
                max_steps=self.n_frames,
                method=None if self.method == ON_A_CPU else self.method,
                folded=folded,
                packed=packed,
            )
            return frames, alignments

        return torch.no_grad()(run)


def in_8_bits(model: Tacotron2) -> Tacotron2:
    """A copy whose LSTMs' rows, of input and state together, are rounded to 127ths of their largest magnitude."""
    model = copy.deepcopy(model)
    for cell in (model.decoder.attention_rnn, model.decoder.decoder_rnn):
        step = torch.cat((cell.weight_ih, cell.weight_hh), dim=1).float().abs().amax(1, keepdim=True) / 127
        for weight in (cell.weight_ih, cell.weight_hh):
            weight.copy_((weight.float() / step).round() * step)
    return model


def decoding(method: str, batch: int, text: int, dtype: torch.dtype, **options: Any) -> Decoding:
    return Decoding(f"{method}-{batch}x{text}", method, batch, text, dtype, **options)


small = partial(decoding, ON_A_CPU, text=7, small=True, n_frames=20)


GRID = [(batch, text) for text in (128, 32, 256) for batch in (1, 64, 4, 16)]

WORKLOADS = on_this_machine(
    gpu=[
        *(decoding(GRAPH, *sizes, torch.float16) for sizes in GRID),
        *(decoding(PERSISTENT, *sizes, torch.float16) for sizes in GRID if sizes[0] <= 4),
        *(decoding(method, 1, 128, torch.float32) for method in (GRAPH, PERSISTENT)),
    ],
    cpu=[
        *(small(batch=batch, dtype=dtype) for batch in (1, 3) for dtype in CPU_DTYPES),
        small(batch=2, dtype=torch.bfloat16, lstm_weights=torch.int8),
        *(decoding(ON_A_CPU, batch, 128, fast_dtype()) for batch in (1, 8)),
    ],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_decode_loop(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
