"""Shared by the tests of `decode_loop`: random calls, one item decoded by PyTorch's modules, and comparisons."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import DecodePiece, DecodeResult, decode_loop, fold_decoder
from fastglow.kernels.decode_loop import decoding as decoding_module
from fastglow.kernels.decode_loop.decoding import Decoding
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from fastglow.kernels.reference.decode_loop import decode_loop as reference
from fastglow.kernels.reference.philox import uniform_noise

from .checks import assert_as_exact_as, assert_same_bits, changed_fields

CAPS = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Batch:
    """The arguments of `decode_loop`, except its options."""

    memory: Tensor
    processed_memory: Tensor
    lengths: Tensor
    seeds: Tensor
    recurrent: RecurrentWeights
    output: OutputWeights

    def to(self, dtype: torch.dtype) -> "Batch":
        def converted(x):
            if isinstance(x, Tensor):
                return x.to(dtype) if x.is_floating_point() else x
            return type(x)(*map(converted, x)) if hasattr(x, "_fields") else tuple(map(converted, x))

        return Batch(*(converted(getattr(self, f.name)) for f in fields(self)))

    def items(self, order: list[int]) -> "Batch":
        """These items, with the padding of the batch."""
        inputs = (x[order] for x in (self.memory, self.processed_memory, self.lengths, self.seeds))
        return Batch(*inputs, self.recurrent, self.output)

    def alone(self, item: int) -> "Batch":
        """One item, unpadded."""
        one, length = self.items([item]), max(1, int(self.lengths[item]))
        return replace(one, memory=one.memory[:, :length], processed_memory=one.processed_memory[:, :length])


@dataclass(frozen=True)
class Case:
    """A call: sizes, options, memory layout, and when the gates fire."""

    lengths: tuple[int, ...] = (7, 3, 5)
    n_frame: int = 6
    n_prenet: tuple[int, ...] = (9, 11)
    n_memory: int = 20
    n_attention: int = 10
    n_attention_rnn: int = 7
    n_decoder_rnn: int = 9
    filters: int = 5
    taps: int = 7
    p_prenet_dropout: float = 0.5
    gate_threshold: float = 0.5
    max_steps: int = 4
    early_stopping: bool = True
    stops: str = "apart"  # at different steps; or "at once", or "never"
    strided: bool = False
    lengths_dtype: torch.dtype = torch.int64
    margin: float = 0.1  # between the logits below and above the gate threshold

    __str__ = changed_fields

    def options(self) -> dict:
        names = ("p_prenet_dropout", "gate_threshold", "max_steps", "early_stopping")
        return {name: getattr(self, name) for name in names}

    def batch(self, dtype: torch.dtype, device: str = "cpu") -> Batch:
        """Random values drawn on the CPU, so that gates fire at the same steps on every device.

        Activations stay near 1, and errors do not grow from step to step.
        """

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            x = (torch.randn(*(reversed(shape) if self.strided else shape), 2) * scale).to(device, dtype)[..., 0]
            return x.permute(*reversed(range(x.dim()))) if self.strided else x.contiguous()

        def cell(n_in: int, n: int) -> LSTMWeights:
            scale = (n_in + n) ** -0.5
            return LSTMWeights(draw(4 * n, n_in, scale=scale), draw(4 * n, n, scale=scale), draw(4 * n), draw(4 * n))

        A, N, n, D = self.n_attention, self.n_attention_rnn, self.n_decoder_rnn, self.n_memory
        B, T, widths = len(self.lengths), max(1, *self.lengths), (self.n_frame, *self.n_prenet)
        seeds = torch.randint(-(2**62), 2**62, (B, 2)).to(device)
        lengths = torch.tensor([[length, -1] for length in self.lengths], dtype=self.lengths_dtype, device=device)
        batch = Batch(
            draw(B, T, D),
            draw(B, T, A),
            lengths[:, 0] if self.strided else lengths[:, 0].contiguous(),
            seeds[:, 0] if self.strided else seeds[:, 0].contiguous(),
            RecurrentWeights(
                cell(widths[-1] + D, N),
                AttentionWeights(
                    draw(A, N, scale=N**-0.5),
                    draw(self.filters, 2, self.taps),
                    draw(A, self.filters, scale=self.filters**-0.5),
                    draw(1, A, scale=2 * A**-0.5),
                ),
                cell(N + D, n),
            ),
            OutputWeights(
                tuple(draw(b, a, scale=a**-0.5) for a, b in zip(widths, widths[1:], strict=False)),
                draw(self.n_frame, n + D, scale=2 * (n + D) ** -0.5),
                draw(self.n_frame),
                draw(1, n + D, scale=4 * (n + D) ** -0.5),
                torch.full((1,), {"at once": 20.0, "never": -20.0}.get(self.stops, 0.0), dtype=dtype, device=device),
            ),
        )
        if self.stops == "apart":
            # No step reads the gate's output, so the bias shifts its logits and changes nothing else.
            logits = [decode_one(self, batch, item)[1] for item, length in enumerate(self.lengths) if length]
            odds = math.log(self.gate_threshold / (1 - self.gate_threshold))
            batch.output.gate_bias.fill_(odds - splitting_threshold(logits, self.margin))
        return batch


def splitting_threshold(logits: list[Tensor], margin: float) -> float:
    """A logit that the items first exceed at as many different steps as possible, in the middle of a gap."""
    values = torch.cat(logits).sort().values.tolist()
    best = (0, 0.0, 0.0)
    for low, high in zip(values, values[1:], strict=False):
        if high - low > margin:
            level = (low + high) / 2
            first = {next((i for i, x in enumerate(one.tolist()) if x > level), len(one)) for one in logits}
            best = max(best, (len(first), high - low, level))
    assert best[0] > 1 or len(logits) == 1, "all items stop at one step: use another seed"
    return best[2]


def decode_one(case: Case, batch: Batch, item: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, gate logits and alignments of all steps of one item, unpadded, in float64 by PyTorch's modules."""
    one = batch.alone(item).to(torch.float64)
    output, attention = one.output, one.recurrent.attention
    memory, processed_memory = one.memory[0], one.processed_memory[0]
    cells = []
    for weights in (one.recurrent.attention_rnn, one.recurrent.decoder_rnn):
        cell = nn.LSTMCell(weights.weight_ih.shape[1], weights.weight_hh.shape[1], device=memory.device).double()
        cell.load_state_dict(weights._asdict())
        cells.append(cell.requires_grad_(False))
    states: list = [None, None]
    frame, context = memory.new_zeros(case.n_frame), memory.new_zeros(case.n_memory)
    weights, sums = memory.new_zeros(len(memory)), memory.new_zeros(len(memory))
    frames, logits, alignments = [], [], []
    for step in range(case.max_steps):
        x = frame
        for layer, weight in enumerate(output.prenet):
            kept = uniform_noise(one.seeds, layer, step, 1, len(weight))[0, 0] >= case.p_prenet_dropout
            x = torch.relu(weight @ x) * kept / (1 - case.p_prenet_dropout)
        states[0] = cells[0](torch.cat((x, context)), states[0])
        location = F.conv1d(torch.stack((weights, sums)), attention.location_conv, padding=case.taps // 2)
        hidden = torch.tanh(attention.query @ states[0][0] + location.T @ attention.location_dense.T + processed_memory)
        weights = torch.softmax((hidden @ attention.v.T)[:, 0], dim=0)
        sums = sums + weights
        context = weights @ memory
        states[1] = cells[1](torch.cat((states[0][0], context)), states[1])
        x = torch.cat((states[1][0], context))
        frame = output.projection @ x + output.projection_bias
        frames.append(frame)
        logits.append((output.gate @ x + output.gate_bias)[0])
        alignments.append(weights)
    return torch.stack(frames), torch.stack(logits), torch.stack(alignments)


def call(batch: Batch, case: Case, function=decode_loop, **options):
    inputs = (batch.memory, batch.processed_memory, batch.lengths, batch.seeds, batch.recurrent, batch.output)
    return function(*inputs, **{**case.options(), **options})


def joined(pieces: Iterable[DecodePiece]) -> DecodeResult:
    pieces = list(pieces)
    frames, alignments = (torch.cat([getattr(piece, x) for piece in pieces], 1) for x in ("frames", "alignments"))
    return DecodeResult(frames, pieces[-1].steps, alignments)


def new_decoding(case: Case, batch: Batch, dtype: torch.dtype | None = None) -> Decoding:
    """After `begin` with the batch."""
    folded = fold_decoder(batch.recurrent, batch.output, dtype)
    sizes = *batch.memory.shape[:2], case.max_steps, case.p_prenet_dropout, case.gate_threshold
    decoding = Decoding(folded, *sizes)
    begin(decoding, batch)
    return decoding


def begin(decoding: Decoding, batch: Batch) -> None:
    decoding.begin(batch.memory, batch.processed_memory, batch.lengths, batch.seeds)


@pytest.fixture
def short_graphs(monkeypatch) -> None:
    """Shorter graphs launch fewer frames past the last one, which makes the tests faster."""
    monkeypatch.setattr(decoding_module, "FRAMES_PER_GRAPH", 2)


def check(case: Case, dtype: torch.dtype, device: str, *methods: str) -> DecodeResult:
    """All methods give the same result, as exact as PyTorch's."""
    batch = case.batch(dtype, device)
    exact, plain = call(batch.to(torch.float64), case, reference), perturbed(lambda: call(batch, case, reference))
    actual, *others = (call(batch, case, method=method) for method in methods)
    for other in others:
        assert_same_bits(other, actual)
    for steps in (actual.steps, *plain.steps):
        assert torch.equal(steps, exact.steps)
    if case.stops == "apart":
        assert len(set(actual.steps.tolist())) > 1
    for triple in zip(actual, plain, exact, strict=True):
        if triple[0].is_floating_point():
            assert_as_exact_as(*triple, 2, CAPS[dtype])
            if dtype == torch.float32:
                for i in range(triple[0].shape[1]):
                    assert_as_exact_as(*(x.select(-2, i) for x in triple), 2, CAPS[dtype])
    return actual


CASES = [
    Case(),
    Case((4, 0, 6, 1), p_prenet_dropout=0.0, gate_threshold=0.3, lengths_dtype=torch.int32, max_steps=3),
    Case((300, 17), max_steps=2, stops="never"),  # more positions than a softmax block
    Case(
        (5, 2), n_frame=15, n_prenet=(20, 37), n_memory=70, n_attention=33, n_attention_rnn=35, n_decoder_rnn=18,
        filters=1, taps=1, max_steps=2,
    ),
    Case((2, 3), n_frame=7, n_prenet=(64, 64), n_memory=64, n_attention_rnn=64, n_decoder_rnn=64, max_steps=2),
    Case(strided=True),
    Case(stops="at once"),
    Case(stops="at once", early_stopping=False),
    Case(early_stopping=False),
    Case(stops="never", max_steps=1),
    Case((1,), 1, (1, 1), 1, 1, 1, 1, filters=1, taps=1, stops="never", max_steps=1),
]  # fmt: skip
MANY = Case((2, 3, 1) * 6, n_memory=5, n_attention=4, max_steps=2)
