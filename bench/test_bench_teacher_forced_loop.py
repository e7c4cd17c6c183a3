"""Tacotron 2's decoder under teacher forcing, forward and backward: mel frames per second in training.

Measured: `Tacotron2.decoder` as a training step calls it, in float16 autocast, with the gradients of all its parameters
and of the encoder's outputs. That includes prenet, output projections and the losses' gradients, but not encoder,
postnet and optimizer. Dropout is on in the timed call and off in the verification, which has fewer frames.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow import Tacotron2

from . import plain_tacotron2, tacotron2_model
from .environment import device
from .workload import (
    COMPILE,
    FORWARD_BACKWARD,
    PEER,
    Cost,
    Implementation,
    Workload,
    cases,
    largest_error,
    launching,
    on_this_machine,
    upstream_gradients,
)

CHECKED_FRAMES = 24
COMPILED_BATCH = 128  # the only one for torch.compile, which recompiles for each batch size
TARGET = 1e6  # mel frames per second, at the largest batch

Decode = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class BarePrenet(nn.Module):
    """NVIDIA's prenet without its dropout."""

    def __init__(self, prenet: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(prenet.get_submodule("layers").children())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


@dataclass(frozen=True)
class Training(Workload):
    """`batch` items of `text` symbols and `n_frames` mel frames."""

    case: str
    dtype: torch.dtype
    batch: int
    text: int
    n_frames: int
    small: bool = False

    op = "teacher_forced_loop"
    directions = (FORWARD_BACKWARD,)

    @property
    def model(self) -> Tacotron2:
        return tacotron2_model.new_model(self.small)

    def supports(self, implementation: str) -> bool:
        return implementation != COMPILE or self.batch == COMPILED_BATCH

    def shapes(self) -> dict[str, list[int]]:
        memory, mels, _ = self._batch(self.n_frames)
        return {"memory": list(memory.shape), "mels": list(mels.shape)}

    def cost(self, direction: str) -> Cost:
        """Reads weights, encoder outputs and mels, writes their gradients; the backward has twice the FLOPs."""
        config, weights = self.model.config, tacotron2_model.decoder_weights(self.model)
        numbers = self.text * config.encoder_embedding_dim + self.n_frames * config.n_mel_channels
        moved = 2 * weights + self.batch * 2 * numbers
        flops = 3 * tacotron2_model.decoder_flops(self.model, self.batch, self.text, self.n_frames)
        return Cost(moved * self.dtype.itemsize, flops)

    def capturable(self, direction: str) -> bool:
        return False  # our loop replays graphs already; NVIDIA's syncs with the host for the lengths

    def frames(self, direction: str) -> int:
        return self.batch * self.n_frames

    def targets(self, direction: str) -> dict[str, float]:
        return {"frames_per_second": TARGET} if self.batch == 128 and self.dtype == torch.float16 else {}

    def call(self, implementation: Implementation, direction: str) -> Callable[[], list[Tensor]]:
        model = self.model
        batch = self._batch(self.n_frames)
        return self._pass(*self._decoder(implementation, model, dropout=True), batch, self.dtype)

    def verify(self, implementation: Implementation, direction: str) -> float:
        batch = self._batch(min(CHECKED_FRAMES, self.n_frames))

        def results(decode: Decode, parameters: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
            mel, gate, alignments, *gradients = self._pass(decode, parameters, batch, dtype)()
            return [mel, gate, alignments, torch.cat([gradient.flatten() for gradient in gradients])]

        model = copy.deepcopy(self.model)
        with launching(implementation):
            actual = results(*self._decoder(implementation, model, dropout=False), self.dtype)
        usual = results(*self._plain(model, self.dtype, dropout=False), self.dtype)
        exact = results(*self._plain(copy.deepcopy(model).double(), torch.float64, dropout=False), torch.float64)
        return largest_error(actual, usual, exact, direction)

    def _batch(self, n_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """(memory, mels, lengths), the longest text first as in NVIDIA's data loader."""
        config = self.model.config
        memory = torch.randn(self.batch, self.text, config.encoder_embedding_dim, device=device()) * 0.5
        mels = torch.randn(self.batch, config.n_mel_channels, n_frames, device=device())
        lengths = torch.linspace(self.text, self.text // 2, self.batch, device=device()).long()
        return memory.requires_grad_(), mels, lengths

    def _decoder(self, implementation: Implementation, model: Tacotron2, dropout: bool) -> tuple[Decode, list[Tensor]]:
        """(decoding function, its parameters sorted by name)."""
        if implementation.name == COMPILE:
            return self._plain(model, self.dtype, dropout, torch.compile(plain_tacotron2.recur, dynamic=False))
        decoder: nn.Module = model.decoder
        if implementation.name == PEER:
            decoder = implementation.nvidia.tacotron2(model).get_submodule("decoder")
            if not dropout:
                decoder.prenet = BarePrenet(decoder.get_submodule("prenet"))
        elif not dropout:
            model.decoder.prenet.p_dropout = 0.0
        decoder.train(dropout)

        def decode(memory: Tensor, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.autocast(device().type, torch.float16, enabled=self.dtype == torch.float16):
                return decoder(memory, mels, lengths)

        return decode, _parameters_of(decoder)

    def _plain(
        self, model: Tacotron2, dtype: torch.dtype, dropout: bool, step=plain_tacotron2.recur
    ) -> tuple[Decode, list[Tensor]]:
        """Casts the float32 parameters to `dtype` once: autocast would cast them at every frame."""
        decoder = model.decoder
        p_dropout = 0.5, decoder.p_attention_dropout, decoder.p_decoder_dropout

        def decode(memory: Tensor, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            weights = plain_tacotron2.cast(plain_tacotron2.weights_of(decoder), dtype)
            probabilities = p_dropout if dropout else (0.0, 0.0, 0.0)
            return plain_tacotron2.run_forced(memory.to(dtype), mels.to(dtype), lengths, weights, probabilities, step)

        return decode, _parameters_of(decoder)

    def _pass(
        self, decode: Decode, parameters: list[Tensor], batch: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
    ) -> Callable[[], list[Tensor]]:
        """A call that returns [mel, gate, alignments, gradients of the encoder's outputs and of the parameters]."""
        memory, mels, lengths = batch
        gradients = upstream_gradients([mels, mels[:, 0]], self.dtype)

        def run() -> list[Tensor]:
            mel, gate, alignments = decode(memory, mels, lengths)
            upstream = [gradient.to(x.dtype) for x, gradient in zip((mel, gate), gradients, strict=True)]
            wanted = torch.autograd.grad((mel, gate), [memory, *parameters], upstream)
            return [mel.detach(), gate.detach(), alignments.detach(), *wanted]

        return run


def _parameters_of(decoder: nn.Module) -> list[Tensor]:
    named = dict(decoder.named_parameters())
    return [named[name] for name in sorted(named)]


def training(dtype: torch.dtype, batch: int, text: int, n_frames: int, small: bool = False) -> Training:
    return Training(f"{batch}x{text}x{n_frames}", dtype, batch, text, n_frames, small)


WORKLOADS = on_this_machine(
    gpu=[training(torch.float16, batch, 128, 400) for batch in (128, 64, 32)],
    cpu=[training(torch.float32, 3, 9, 14, small=True)],
)


@pytest.mark.parametrize("workload, direction", cases(WORKLOADS))
def test_teacher_forced_loop(measure, workload, direction, implementation):
    measure(workload, direction, implementation)
