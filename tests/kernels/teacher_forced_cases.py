"""Calls of the teacher-forced loop for its tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastglow.kernels import teacher_forced_loop
from fastglow.kernels.reference import teacher_forced_loop as reference
from fastglow.kernels.reference.teacher_forced_loop import Arguments

from .checks import changed_fields

CAPS = {torch.float32: (1e-5, 2e-5), torch.float16: (1e-2, 4e-2), torch.bfloat16: (8e-2, 3e-1)}


@dataclass(frozen=True)
class Case:
    """One call: sizes, dropout, memory layout."""

    frames: int = 3
    batch: int = 3
    symbols: int = 7
    n_input: int = 5
    n_memory: int = 12
    n_attention: int = 9
    n_attention_rnn: int = 24
    n_decoder_rnn: int = 17
    filters: int = 3
    taps: int = 5
    p_attention_dropout: float = 0.0
    p_decoder_dropout: float = 0.0
    strided: bool = False

    def __str__(self) -> str:
        return changed_fields(self)

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """By the names of `Arguments`; activations stay of order 1."""

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            x = torch.randn(*shape, device=device) * scale
            if self.strided:
                x = torch.stack((x, x), dim=-1)[..., 0]
            return x.to(dtype).requires_grad_()

        def cell(n_in: int, n: int) -> list[Tensor]:
            scale = (n_in + n) ** -0.5
            weights = draw(4 * n, n_in, scale=2 * scale), draw(4 * n, n, scale=2 * scale)
            return [*weights, draw(4 * n, scale=0.3), draw(4 * n, scale=0.3)]

        A, N, D = self.n_attention, self.n_attention_rnn, self.n_memory
        return dict(
            zip(
                Arguments._fields,
                (
                    draw(self.frames, self.batch, self.n_input),
                    draw(self.batch, self.symbols, D),
                    draw(self.batch, self.symbols, A),
                    *cell(self.n_input + D, N),
                    draw(A, N, scale=2 * N**-0.5),
                    draw(self.filters, 2, self.taps),
                    draw(A, self.filters),
                    draw(1, A),
                    *cell(N + D, self.n_decoder_rnn),
                ),
                strict=True,
            )
        )

    def arguments(self, dtype: torch.dtype, device: str = "cpu", seed: int | None = 77) -> dict[str, Any]:
        """Arguments of `LOOP` and `DEFINITION`; text lengths go from all symbols down to one."""
        return {
            **self.tensors(dtype, device),
            "memory_lengths": torch.linspace(self.symbols, 1, self.batch, device=device).long(),
            "p_attention_dropout": self.p_attention_dropout,
            "p_decoder_dropout": self.p_decoder_dropout,
            "seed": seed if self.p_attention_dropout or self.p_decoder_dropout else None,
        }

    def upstream(self, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        sizes = (self.n_decoder_rnn + self.n_memory, self.symbols)
        return [torch.randn(self.batch, self.frames, n, device=device).to(dtype) for n in sizes]


DROPOUT = Case(frames=2, p_attention_dropout=0.3, p_decoder_dropout=0.2)

PUBLISHED = Case(
    frames=40, batch=17, symbols=93, n_input=256, n_memory=512, n_attention=128, n_attention_rnn=1024,
    n_decoder_rnn=1024, filters=32, taps=31, p_attention_dropout=0.1, p_decoder_dropout=0.1,
)  # fmt: skip


def by_name(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function with the fields of `Arguments` as keywords."""

    def call(*, memory_lengths: Tensor, p_attention_dropout=0.0, p_decoder_dropout=0.0, seed=None, **tensors):
        arguments = Arguments(**tensors)
        return function(
            arguments.decoder_inputs,
            arguments.memory,
            arguments.processed_memory,
            memory_lengths,
            arguments.weights,
            p_attention_dropout=p_attention_dropout,
            p_decoder_dropout=p_decoder_dropout,
            seed=seed,
        )

    return call


LOOP, DEFINITION = by_name(teacher_forced_loop), by_name(reference.teacher_forced_loop)
