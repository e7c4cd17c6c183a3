"""Calls of the teacher-forced loop, and their comparison with float64, for its tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastglow.kernels import backend, teacher_forced_loop
from fastglow.kernels.reference import teacher_forced_loop as reference
from fastglow.kernels.reference.teacher_forced_loop import Arguments

from .checks import assert_as_exact_as, cast, changed_fields
from .rounding import drawn

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

    def lengths(self, device: str = "cpu") -> Tensor:
        """From all symbols down to one."""
        return torch.linspace(self.symbols, 1, self.batch, device=device).long()

    def options(self, seed: int | None = 77) -> dict:
        drops = self.p_attention_dropout or self.p_decoder_dropout
        return {
            "p_attention_dropout": self.p_attention_dropout,
            "p_decoder_dropout": self.p_decoder_dropout,
            "seed": seed if drops else None,
        }


DROPOUT = Case(frames=2, p_attention_dropout=0.3, p_decoder_dropout=0.2)

PUBLISHED = Case(
    frames=40, batch=17, symbols=93, n_input=256, n_memory=512, n_attention=128, n_attention_rnn=1024,
    n_decoder_rnn=1024, filters=32, taps=31, p_attention_dropout=0.1, p_decoder_dropout=0.1,
)  # fmt: skip


def call(function: Callable, tensors: dict[str, Tensor], lengths: Tensor, **options) -> tuple[Tensor, Tensor]:
    arguments = Arguments(**tensors)
    x, memory, processed_memory, *_ = arguments
    return function(x, memory, processed_memory, lengths, arguments.weights, **options)


def upstream_of(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    sizes = (case.n_decoder_rnn + case.n_memory, case.symbols)
    return [torch.randn(case.batch, case.frames, n, device=device).to(dtype) for n in sizes]


def differentiate(
    function: Callable, tensors: dict[str, Tensor], lengths: Tensor, upstream: list[Tensor | None], **options
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(outputs, gradients by name); an output whose upstream gradient is None takes no part."""
    outputs = call(function, tensors, lengths, **options)
    used = [(x, d) for x, d in zip(outputs, upstream, strict=True) if d is not None]
    leaves = {name: x for name, x in tensors.items() if x.requires_grad}
    gradients = torch.autograd.grad(
        [x for x, _ in used], list(leaves.values()), [d.to(x.dtype) for x, d in used], allow_unused=True
    )
    return [x.detach() for x in outputs], dict(zip(leaves, gradients, strict=True))


def assert_same(actual: tuple[list, dict], expected: tuple[list, dict], atol: float = 1e-12) -> None:
    for x, y in zip(actual[0], expected[0], strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)
    assert actual[1].keys() == expected[1].keys()
    for name, gradient in actual[1].items():
        torch.testing.assert_close(gradient, expected[1][name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def check_against_fp64(
    case: Case,
    tensors: dict[str, Tensor],
    lengths: Tensor,
    caps: tuple[float, float],
    reached: tuple[bool, bool] = (True, True),
) -> None:
    dtype, device = tensors["memory"].dtype, tensors["memory"].device
    upstream = [d if r else None for d, r in zip(upstream_of(case, dtype, str(device)), reached, strict=True)]
    arguments = {"lengths": lengths, "upstream": upstream, **case.options()}
    exact, exact_gradients = differentiate(teacher_forced_loop, cast(tensors, torch.float64), **arguments)
    plain, plain_gradients = drawn(lambda: differentiate(reference.teacher_forced_loop, tensors, **arguments))
    with backend.use_backend("triton"):
        ours, our_gradients = differentiate(teacher_forced_loop, tensors, **arguments)
    for actual, usual, truth in zip(ours, plain, exact, strict=True):
        assert_as_exact_as(actual, usual, truth, factor=2, cap=caps[0])
    for name, truth in exact_gradients.items():
        usual = plain_gradients[name]
        usual = torch.zeros_like(our_gradients[name]).unsqueeze(0) if usual is None else usual
        assert_as_exact_as(our_gradients[name], usual, truth, factor=3, cap=caps[1])
