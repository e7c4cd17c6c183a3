"""The free-running decoder: its definition against one item at a time, its kernels against the definition."""

import importlib
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor, nn

from fastglow.errors import FastglowError
from fastglow.kernels import DecodeResult, backend, decode_loop, fold_decoder
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, OutputWeights, RecurrentWeights
from fastglow.kernels.reference.decode_loop import decode_loop as reference
from fastglow.kernels.reference.philox import uniform_noise

from .conftest import DEVICE, assert_as_exact_as
from .rounding import drawn

module = importlib.import_module("fastglow.kernels.decode_loop")

CAPS = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Batch:
    """What `decode_loop` takes, but for its options."""

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
        """Those of the items, padded as they are."""
        inputs = (x[order] for x in (self.memory, self.processed_memory, self.lengths, self.seeds))
        return Batch(*inputs, self.recurrent, self.output)

    def alone(self, item: int) -> "Batch":
        """One item, unpadded."""
        one, length = self.items([item]), max(1, int(self.lengths[item]))
        return replace(one, memory=one.memory[:, :length], processed_memory=one.processed_memory[:, :length])


@dataclass(frozen=True)
class Case:
    """A call: sizes, options, memory layout, and when the items' gates fire."""

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
    margin: float = 0.1  # between logits below and above the level where gates fire

    def __str__(self) -> str:
        changed = [f"{f.name} {getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed) or "default"

    def options(self) -> dict:
        names = ("p_prenet_dropout", "gate_threshold", "max_steps", "early_stopping")
        return {name: getattr(self, name) for name in names}

    def batch(self, dtype: torch.dtype, device: str = "cpu") -> Batch:
        """Drawn on the CPU, so that gates fire at the same steps everywhere.

        Activations stay of order 1, and errors do not grow from step to step.
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
            # Gates are read by nothing: their bias moves no logit but by itself.
            logits = [decode_one(self, batch, item)[1] for item, length in enumerate(self.lengths) if length]
            odds = math.log(self.gate_threshold / (1 - self.gate_threshold))
            batch.output.gate_bias.fill_(odds - level_that_parts(logits, self.margin))
        return batch


def level_that_parts(logits: list[Tensor], margin: float) -> float:
    """A level that the logits first pass at as many different steps as may be, in the middle of a gap between them."""
    values = torch.cat(logits).sort().values.tolist()
    best = (0, 0.0, 0.0)
    for low, high in zip(values, values[1:], strict=False):
        if high - low > margin:
            level = (low + high) / 2
            first = {next((i for i, x in enumerate(one.tolist()) if x > level), len(one)) for one in logits}
            best = max(best, (len(first), high - low, level))
    assert best[0] > 1 or len(logits) == 1, "all items stop at one step: draw other numbers"
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


def call(batch: Batch, case: Case, function=decode_loop, **options) -> DecodeResult:
    inputs = (batch.memory, batch.processed_memory, batch.lengths, batch.seeds, batch.recurrent, batch.output)
    return function(*inputs, **{**case.options(), **options})


def assert_same_bits(actual: DecodeResult, expected: DecodeResult) -> None:
    for name, x, y in zip(DecodeResult._fields, actual, expected, strict=True):
        assert torch.equal(x, y), name


def decoding_of(case: Case, batch: Batch, dtype: torch.dtype | None = None) -> module._Decoding:
    """Begun."""
    folded = fold_decoder(batch.recurrent, batch.output, dtype)
    sizes = *batch.memory.shape[:2], case.max_steps, case.p_prenet_dropout, case.gate_threshold
    decoding = module._Decoding(folded, *sizes)
    begin(decoding, batch)
    return decoding


def begin(decoding: module._Decoding, batch: Batch) -> None:
    decoding.begin(batch.memory, batch.processed_memory, batch.lengths, batch.seeds)


# The definition.

DEFINED = [
    Case(),
    Case(p_prenet_dropout=0.0),
    Case((4, 0, 6, 1), gate_threshold=0.3, lengths_dtype=torch.int32),
    Case(early_stopping=False, max_steps=9),
    Case(stops="never"),
    Case(stops="at once"),
    Case(stops="at once", early_stopping=False),
    Case((0, 0), stops="never"),
    Case(taps=1, n_prenet=(9, 5, 3), strided=True),
    Case((3,), stops="never", max_steps=67),  # more than noise is drawn for at a time
]


@pytest.mark.parametrize("case", DEFINED, ids=str)
def test_definition_gives_every_item_what_it_gets_alone(case):
    batch = case.batch(torch.float64)
    frames, steps, alignments = call(batch, case, reference)
    B, T = batch.memory.shape[:2]
    expected = torch.zeros(B, case.max_steps, case.n_frame).double(), torch.zeros(B, case.max_steps, T).double()
    fired = []
    for item, length in enumerate(case.lengths):
        fired.append(0)
        if length == 0:
            continue
        its_frames, logits, its_alignments = decode_one(case, batch, item)
        is_over = torch.sigmoid(logits) > case.gate_threshold
        fired[-1] = int(is_over.int().argmax()) if is_over.any() else case.max_steps
        expected[0][item, : fired[-1] + 1] = its_frames[: fired[-1] + 1]
        expected[1][item, : fired[-1] + 1, :length] = its_alignments[: fired[-1] + 1]
    assert steps.tolist() == fired
    n = min(max(fired) + 1, case.max_steps) if case.early_stopping else case.max_steps
    torch.testing.assert_close(frames, expected[0][:, :n], atol=1e-12, rtol=0)
    torch.testing.assert_close(alignments, expected[1][:, :n], atol=1e-12, rtol=0)
    if case.stops == "apart":
        assert len({step for step, length in zip(fired, case.lengths, strict=True) if length}) > 1


# The kernels.


def check(case: Case, dtype: torch.dtype, device: str, *methods: str) -> DecodeResult:
    """All methods' result, which is the same."""
    batch = case.batch(dtype, device)
    exact, plain = call(batch.to(torch.float64), case, reference), drawn(lambda: call(batch, case, reference))
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
    Case((300, 17), max_steps=2, stops="never"),  # more than one block of a softmax
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


@pytest.fixture
def allow_tf32() -> Iterator[Callable[[], None]]:
    """`allow_tf32()`: from now on, and until the test's end."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture
def few_frames_a_look(monkeypatch) -> None:
    """Frames after the last are launched for nothing: the fewer, the shorter the tests."""
    monkeypatch.setattr(module, "STEPS_PER_GRAPH", 2)


@pytest.mark.usefixtures("triton_backend", "few_frames_a_look")
class TestKernels:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_as_exact_as_pytorch(self, case, device):
        methods = ("persistent", "steps") if case in CASES[:4] else ("persistent",)
        check(case, torch.float32, device, *methods)

    def test_more_items_than_a_block(self, device):
        together = check(MANY, torch.float32, device, "steps")
        torch.manual_seed(0)
        some = [17, 5, 16]
        few = call(MANY.batch(torch.float32, device).items(some), MANY)
        n = few.frames.shape[1]
        assert torch.equal(together.steps[some], few.steps)
        assert torch.equal(together.frames[some, :n], few.frames)
        assert torch.equal(together.alignments[some, :n], few.alignments)

    @pytest.mark.skipif(DEVICE == "cuda", reason="compiled kernels keep the constant; on a GPU larger sizes are tested")
    def test_query_of_more_parts_than_are_added_up_at_a_time(self, device, monkeypatch):
        monkeypatch.setattr(module, "SHARES", tl.constexpr(2))
        check(replace(CASES[3], max_steps=1, stops="never"), torch.float32, device, "persistent")

    @pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]], ids=str)
    def test_as_exact_as_pytorch_in_float16(self, case, device):
        check(case, torch.float16, device, "persistent")

    def test_an_item_gets_the_bits_it_gets_alone(self, device):
        case = Case((4, 0, 6, 1))
        batch = case.batch(torch.float32, device)
        order = [3, 0, 2, 1]
        together = call(batch.items(order), case)
        for row, item in enumerate(order):
            alone = call(batch.alone(item), case)
            n, T = alone.alignments.shape[1:]
            assert torch.equal(together.steps[row], alone.steps[0])
            assert torch.equal(together.frames[row, :n], alone.frames[0])
            assert torch.equal(together.alignments[row, :n, :T], alone.alignments[0])
            for x in (together.frames[row, n:], together.alignments[row, n:], together.alignments[row, :, T:]):
                assert not x.any()

    def test_a_broken_item_leaves_the_others_alone(self, device):
        batch = Case().batch(torch.float32, device)
        expected = call(batch, Case())
        batch.memory[1, 0] = float("nan")
        actual = call(batch, Case())
        assert actual.frames[1, 0].isnan().all()
        for x, y in zip(actual, expected, strict=True):
            assert torch.equal(x[::2], y[::2])

    def test_a_length_beyond_the_memory_is_all_of_it(self, device):
        case = Case(max_steps=1)
        batch = case.batch(torch.float32, device)
        expected = call(replace(batch, lengths=torch.full_like(batch.lengths, 7)), case)
        assert_same_bits(call(replace(batch, lengths=torch.full_like(batch.lengths, 9)), case), expected)

    def test_finished_items_cost_nothing(self, device):
        """The list loses each item after its last frame; what was not computed is still the poison."""
        case = Case((5, 0, 4), early_stopping=False)
        batch = case.batch(torch.float32, device)
        steps = call(batch, case, reference).steps.tolist()
        decoding = decoding_of(case, batch)
        active = decoding._begin_arguments[1]
        for t in range(case.max_steps + 2):
            running = [i for i, last in enumerate(steps) if case.lengths[i] and t <= last and t < case.max_steps]
            n_active = int(decoding.n_active[t % 2])
            assert active[t % 2, :n_active].tolist() == running
            decoding.run_frames(1)
        for i, last in enumerate(steps):
            n = min(last + 1, case.max_steps) if case.lengths[i] else 0
            for written in (decoding.frames[i], decoding.alignments[i, 1:]):
                assert written[:n].isfinite().all()
                assert written[n:].isnan().all()
        assert decoding.frames[3:].isnan().all()  # rows that fill the batch up

    @pytest.mark.parametrize("run, max_steps", [("run_loop", 2), ("run_steps", 1)])
    def test_nothing_is_left_of_the_batch_before(self, run, max_steps, device):
        case = Case((7, 3, 5), max_steps=max_steps, stops="never")
        batch = case.batch(torch.float32, device)
        decoding = decoding_of(case, batch)
        arguments = (1,) if run == "run_loop" else ()
        getattr(decoding, run)(*arguments)
        first = decoding.result(3, 7, True)
        small = Batch(
            batch.memory[1:, :5], batch.processed_memory[1:, :5], batch.lengths[1:].clamp(max=5), batch.seeds[1:],
            batch.recurrent, batch.output,
        )  # fmt: skip
        for one in (small, batch):
            begin(decoding, one)
            getattr(decoding, run)(*arguments)
            assert_same_bits(decoding.result(*one.memory.shape[:2], True), call(one, case))
        assert_same_bits(first, call(batch, case))

    def test_what_is_kept_serves_sizes_that_are_rounded_to_its_own(self, device, monkeypatch):
        monkeypatch.setattr(module, "DECODINGS_KEPT", 2)
        case = Case((3, 2, 4), max_steps=1, stops="never")
        batch = case.batch(torch.float32, device)
        folded = fold_decoder(batch.recurrent, batch.output)
        asked = []

        def ask(dtype: torch.dtype) -> module.FoldedDecoder:
            asked.append(dtype)
            return folded

        expected = call(batch, case)
        assert_same_bits(call(batch, case, folded=ask), expected)
        (kept,) = folded.kept.values()
        four = batch.items([0, 1, 2, 0])
        assert_same_bits(call(four, case, folded=folded), call(four, case))
        assert list(folded.kept.values()) == [kept]
        for other in ({"max_steps": 2}, {"p_prenet_dropout": 0.25}):
            assert_same_bits(call(batch, case, folded=folded, **other), call(batch, case, **other))
        assert len(folded.kept) == 2
        assert kept not in folded.kept.values()
        assert asked == [torch.float32]

    def test_folded_weights_of_another_dtype(self, device):
        batch = Case().batch(torch.float32, device)
        halves = replace(batch, memory=batch.memory.half(), processed_memory=batch.processed_memory.half())
        folded = fold_decoder(batch.recurrent, batch.output, torch.float16)
        for name in ("attention_ih", "query", "location", "v", "decoder_hh", "output", "prenet"):
            assert getattr(folded, name).dtype == torch.float16, name
        for name in ("attention_bias", "decoder_bias", "output_bias"):
            assert getattr(folded, name).dtype == torch.float32, name
        expected = call(halves, Case(), folded=folded)
        assert expected.frames.dtype == expected.alignments.dtype == torch.float16
        with torch.autocast(device, torch.float16):
            assert_same_bits(call(batch, Case()), expected)
            # Folded for another dtype than is computed in: of no use, and not used.
            assert_same_bits(call(batch, Case(), folded=fold_decoder(batch.recurrent, batch.output)), expected)
        plain = drawn(lambda: call(batch.to(torch.half), Case(), reference))
        exact = call(batch.to(torch.double), Case(), reference)
        assert expected.steps.tolist() == exact.steps.tolist()
        assert_as_exact_as(expected.frames, plain.frames, exact.frames, 2, CAPS[torch.float16])

    def test_no_gradient_and_no_inference_tensors_are_kept(self, device):
        batch = Case(max_steps=1, stops="never").batch(torch.float32, device)
        for x in (*batch.output.prenet, batch.output.projection, *batch.recurrent.attention):
            x.requires_grad_()
        folded = fold_decoder(batch.recurrent, batch.output)
        with torch.inference_mode():
            first = call(batch, Case(), max_steps=1, folded=folded)
        second = call(batch, Case(), max_steps=1, folded=folded)
        assert_same_bits(second, first)
        assert not second.frames.requires_grad
        assert not second.alignments.requires_grad

    @pytest.mark.parametrize("stops, max_steps, expected", [("at once", 12, [0, 2]), ("never", 5, [0, 2, 4])])
    def test_replays_end_one_after_the_list_is_empty(self, stops, max_steps, expected, device, monkeypatch):
        """What a CUDA graph of two frames would do, launched as often as it would be replayed."""
        case = Case(stops=stops, max_steps=max_steps)
        batch = case.batch(torch.float32, device)
        decoding = decoding_of(case, batch)
        replays = []

        def replay() -> None:
            replays.append(int(decoding.frame))
            decoding.run_frames(2)

        decoding._graph = SimpleNamespace(replay=replay)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
        monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
        decoding.run_graph()
        assert replays == expected
        assert_same_bits(decoding.result(3, 7, True), call(batch, case))

    @pytest.mark.parametrize("programs, arrived", [(2, 0), (1, -1)], ids=["one program late", "one missing"])
    def test_a_lost_program_is_an_error_and_not_a_hang(self, programs, arrived, device, monkeypatch):
        """The interpreter runs programs one after another: the first waits in vain for the second."""
        if programs > 1 and device == "cuda":
            pytest.skip("on a GPU both programs run at once")
        monkeypatch.setattr(module, "MAX_POLLS", 16)
        batch = Case().batch(torch.float32, device)
        decoding = decoding_of(Case(), batch)
        decoding.barrier.fill_(arrived)
        decoding.run_loop(programs)
        with pytest.raises(FastglowError, match="did not arrive at a barrier.*pass method='graph'"):
            decoding.result(3, 7, True)
        begin(decoding, batch)
        decoding.run_loop(1)
        assert_same_bits(decoding.result(3, 7, True), call(batch, Case()))

    def test_method_by_default(self, device, monkeypatch):
        case = Case(max_steps=1, stops="never")
        batch = case.batch(torch.float32, device)
        counts = []
        for most in (3, 2):
            monkeypatch.setattr(module, "PERSISTENT_ITEMS", most)
            before = backend.launches["decode_loop"]
            call(batch, case)
            counts.append(backend.launches["decode_loop"] - before)
        assert counts[0] == 2  # the list, and all frames
        assert counts[1] > 2
        with pytest.raises(FastglowError, match="'persistent' cannot serve this call: 3 items are more than 2"):
            call(batch, case, method="persistent")


# Where the kernels do not serve.


@pytest.mark.parametrize("name", ["triton", "reference", "auto"])
def test_no_items(name, device):
    batch = Case().batch(torch.float32, device).items([])
    with backend.use_backend(name):
        frames, steps, alignments = call(batch, Case())
    assert frames.shape == (0, 1, 6)
    assert steps.shape == (0,)
    assert alignments.shape == (0, 1, 7)


@pytest.mark.parametrize(
    "case, dtype, reason",
    [
        (Case(), torch.float64, "float64 is not among float32, float16 and bfloat16"),
        (Case(n_prenet=(9, 5, 8)), torch.float32, "a prenet of 3 layers is none of 2"),
        (Case(n_prenet=(9,)), torch.float32, "a prenet of 1 layers is none of 2"),
        (Case(n_attention=257, max_steps=1, stops="never"), torch.float32, "attention dimension 257 is above 256"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_what_the_kernels_do_not_serve_falls_back_or_is_refused(case, dtype, reason, device, caplog):
    batch = case.batch(dtype, device)
    before = backend.launches["decode_loop"]
    backend._said.clear()
    with backend.use_backend("auto"):
        assert_same_bits(
            call(batch, case, folded=lambda dtype: pytest.fail("was folded")), call(batch, case, reference)
        )
    assert (reason in caplog.text) == (device == "cuda")
    with backend.use_backend("triton"), pytest.raises(FastglowError, match=f"^decode_loop: the Triton .*: {reason}"):
        call(batch, case)
    assert backend.launches["decode_loop"] == before


def test_fold_decoder_refuses_a_prenet_that_is_none_of_two_layers():
    batch = Case(n_prenet=(9, 5, 8)).batch(torch.float32)
    with pytest.raises(FastglowError, match="a prenet of 3 layers: .* take one of 2"):
        fold_decoder(batch.recurrent, batch.output)


def test_graphs_are_refused_on_a_cpu():
    if DEVICE == "cuda":
        pytest.skip("the kernels serve no CPU where there is a GPU")
    with backend.use_backend("triton"), pytest.raises(FastglowError, match="'graph' cannot serve .* cpu has no CUDA"):
        call(Case().batch(torch.float32), Case(), method="graph")


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("memory", (7, 20), r"memory has shape \(7, 20\): pass encoder outputs \[B, T, D\]"),
        ("memory", (3, 0, 20), r"memory has shape \(3, 0, 20\): pass encoder outputs \[B, T, D\], T at least 1"),
        ("processed_memory", (3, 6, 10), r"processed_memory has shape \(3, 6, 10\), not \(3, 7, 10\), beside memory"),
        ("lengths", (2,), r"lengths has shape \(2,\), not \(3,\)"),
        ("seeds", (3, 1), r"seeds has shape \(3, 1\), not \(3,\)"),
        ("attention_rnn.weight_ih", (28, 30), r"attention_rnn.weight_ih has shape \(28, 30\), not \(28, 31\)"),
        ("attention_rnn.weight_hh", (27, 7), r"attention_rnn.weight_hh has shape \(27, 7\), not \(28, 7\)"),
        ("attention_rnn.bias_ih", (27,), r"attention_rnn.bias_ih has shape \(27,\), not \(28,\)"),
        ("attention_rnn.bias_hh", (28, 1), r"attention_rnn.bias_hh has shape \(28, 1\), not \(28,\)"),
        ("attention.query", (10, 8), r"attention.query has shape \(10, 8\), not \(10, 7\)"),
        ("attention.location_conv", (5, 2, 6), "location_conv has 6 taps: use an odd number"),
        ("attention.location_conv", (5, 1, 7), r"location_conv has shape \(5, 1, 7\), not \(5, 2, 7\)"),
        ("attention.location_dense", (10, 4), r"location_dense has shape \(10, 4\), not \(10, 5\)"),
        ("attention.v", (10,), r"attention.v has shape \(10,\), not \(1, 10\)"),
        ("decoder_rnn.weight_ih", (36, 28), r"decoder_rnn.weight_ih has shape \(36, 28\), not \(36, 27\)"),
        ("decoder_rnn.weight_hh", (35, 9), r"decoder_rnn.weight_hh has shape \(35, 9\), not \(36, 9\)"),
        ("decoder_rnn.bias_ih", (9,), r"decoder_rnn.bias_ih has shape \(9,\), not \(36,\)"),
        ("decoder_rnn.bias_hh", (9,), r"decoder_rnn.bias_hh has shape \(9,\), not \(36,\)"),
        ("prenet", (9, 5), r"prenet\[0\] has shape \(9, 5\), not \(9, 6\)"),
        ("projection", (6, 28), r"projection has shape \(6, 28\), not \(6, 29\)"),
        ("projection_bias", (5,), r"projection_bias has shape \(5,\), not \(6,\)"),
        ("gate", (2, 29), r"gate has shape \(2, 29\), not \(1, 29\)"),
        ("gate_bias", (), r"gate_bias has shape \(\), not \(1,\)"),
    ],
)
def test_wrong_shapes(name, shape, message):
    batch = Case().batch(torch.float32)
    x, (group, _, leaf) = torch.zeros(shape), name.partition(".")
    if group in ("lengths", "seeds"):
        x = x.long()
    if leaf:
        changed = getattr(batch.recurrent, group)._replace(**{leaf: x})
        batch = replace(batch, recurrent=batch.recurrent._replace(**{group: changed}))
    elif group == "prenet":
        batch = replace(batch, output=batch.output._replace(prenet=(x, batch.output.prenet[1])))
    elif group in OutputWeights._fields:
        batch = replace(batch, output=batch.output._replace(**{group: x}))
    else:
        batch = replace(batch, **{group: x})
    with pytest.raises(FastglowError, match=message):
        call(batch, Case())


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"lengths": torch.ones(3)}, "lengths have dtype torch.float32: pass integers"),
        ({"lengths": torch.ones(3, dtype=torch.bool)}, "lengths have dtype torch.bool: pass integers"),
        ({"seeds": torch.ones(3, dtype=torch.int32)}, "seeds have dtype torch.int32: pass torch.int64"),
        ({"p_prenet_dropout": 1.0}, "p_prenet_dropout 1.0 is not a probability below 1"),
        ({"p_prenet_dropout": -0.5}, "p_prenet_dropout -0.5 is not a probability below 1"),
        ({"max_steps": 0}, "max_steps 0 must be at least 1"),
        ({"method": "fast"}, "method 'fast' is unknown: pass 'steps', 'graph', 'persistent' or None"),
    ],
    ids=str,
)
def test_wrong_arguments(changed, message):
    inputs = {name: x for name, x in changed.items() if isinstance(x, Tensor)}
    options = {name: x for name, x in changed.items() if name not in inputs}
    with pytest.raises(FastglowError, match=message):
        call(replace(Case().batch(torch.float32), **inputs), Case(), **options)


# On a GPU: full sizes, and what only a GPU has.

PUBLISHED = Case(
    (93,), n_frame=80, n_prenet=(256, 256), n_memory=512, n_attention=128, n_attention_rnn=1024, n_decoder_rnn=1024,
    filters=32, taps=31, max_steps=20, margin=0.0,
)  # fmt: skip
CAPS_TF32 = 1e-2
METHODS = ("steps", "graph", "persistent")


def published(batch_size: int, **changed) -> Case:
    """Texts of 93 symbols and less, the last of 1."""
    return replace(PUBLISHED, lengths=tuple(torch.linspace(93, 1, batch_size).int().tolist()), **changed)


@pytest.mark.gpu
@pytest.mark.usefixtures("triton_backend")
class TestOnGPU:
    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("case", [*CASES, MANY], ids=str)
    def test_as_exact_as_pytorch(self, dtype, case):
        if case.stops == "apart" and dtype == torch.bfloat16:
            case = replace(case, stops="never")  # a margin that bfloat16 keeps to there is not
        check(case, dtype, "cuda", *METHODS[: 2 if case is MANY else 3])

    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("batch_size", [1, 5, 8, 40])
    def test_published_sizes(self, dtype, batch_size):
        check(published(batch_size, stops="never"), dtype, "cuda", *METHODS[: 3 if batch_size <= 8 else 2])

    def test_published_sizes_in_tf32(self, allow_tf32):
        case = published(5, stops="never")
        batch = case.batch(torch.float32, "cuda")
        folded = fold_decoder(batch.recurrent, batch.output)
        exactly = call(batch, case, method="graph", folded=folded)
        allow_tf32()
        actual = call(batch, case, method="graph", folded=folded)
        for method in METHODS:
            assert_same_bits(call(batch, case, method=method), actual)
        assert not torch.equal(actual.frames, exactly.frames)  # no graph that was recorded before
        exact, plain = call(batch.to(torch.float64), case, reference), drawn(lambda: call(batch, case, reference))
        assert_as_exact_as(actual.frames, plain.frames, exact.frames, 2, CAPS_TF32)

    def test_query_of_more_parts_than_are_added_up_at_a_time(self):
        check(published(2, n_attention_rnn=1040, stops="never"), torch.float16, "cuda", *METHODS)

    @pytest.mark.parametrize("dtype", CAPS, ids=str)
    @pytest.mark.parametrize("batch_size", [5, 8, 40])
    def test_items_that_end_one_by_one_get_the_bits_they_get_alone(self, dtype, batch_size):
        case = published(batch_size, max_steps=60)
        batch = case.batch(dtype, "cuda")
        folded = fold_decoder(batch.recurrent, batch.output)
        together = call(batch, case, method="steps", folded=folded)
        assert len(set(together.steps.tolist())) > 1
        for method in METHODS[1 : 3 if batch_size <= 8 else 2]:
            assert_same_bits(call(batch, case, method=method, folded=folded), together)
        for item in {0, 1, batch_size // 2, batch_size - 1}:
            alone = call(batch.alone(item), case, folded=folded)
            n, T = alone.alignments.shape[1:]
            assert torch.equal(together.steps[item], alone.steps[0])
            assert torch.equal(together.frames[item, :n], alone.frames[0])
            assert torch.equal(together.alignments[item, :n, :T], alone.alignments[0])

    def test_two_thousand_frames(self):
        """The methods do not drift apart, and the weights of the attention not from a sum of 1."""
        case = published(2, max_steps=2000, stops="never")
        batch = case.batch(torch.float16, "cuda")
        result = call(batch, case, method="persistent")
        assert result.steps.tolist() == [2000, 2000]
        assert result.frames.isfinite().all()
        assert (result.alignments.float().sum(dim=2) - 1).abs().max() < 2e-3
        for method in ("graph", "steps"):
            assert_same_bits(call(batch, case, method=method), result)

    @pytest.mark.parametrize("method", ["graph", "persistent"])
    def test_sentences_one_after_another(self, method):
        """With the same weights, and so the same buffers and the same graph."""
        first, second = published(5), replace(published(6), lengths=(100, 3, 0, 77, 65, 12))
        batches = [case.batch(torch.float16, "cuda") for case in (first, second)]
        weights = batches[0].recurrent, batches[0].output
        batches[1] = replace(batches[1], recurrent=weights[0], output=weights[1])
        expected = [call(batch, first, method="steps") for batch in batches]
        folded = fold_decoder(*weights)
        for i in (0, 1, 0, 1):
            assert_same_bits(call(batches[i], first, method=method, folded=folded), expected[i])
        assert len(folded.kept) == 1

    def test_changed_weights_are_folded_and_recorded_anew(self):
        case = published(3, stops="never")
        batch = case.batch(torch.float16, "cuda")
        old = fold_decoder(batch.recurrent, batch.output)
        before = call(batch, case, method="graph", folded=old)
        batch.output.prenet[0].mul_(1.5)
        batch.recurrent.attention.location_conv.mul_(-1.0)
        new = fold_decoder(batch.recurrent, batch.output)
        after = call(batch, case, method="graph", folded=new)
        assert not torch.equal(after.frames, before.frames)
        assert_same_bits(after, call(batch, case, method="steps"))
        assert_same_bits(call(batch, case, method="graph", folded=old), before)

    def test_a_lost_program_is_an_error_and_not_a_hang(self, monkeypatch):
        case = published(2)
        batch = case.batch(torch.float16, "cuda")
        decoding = decoding_of(case, batch)
        decoding.barrier.fill_(-1)  # one arrival is never counted
        monkeypatch.setattr(module, "MAX_POLLS", 1 << 12)
        n_programs = torch.cuda.get_device_properties("cuda").multi_processor_count
        decoding.run_loop(n_programs, launch_cooperative_grid=True)
        with pytest.raises(FastglowError, match="did not arrive at a barrier.*pass method='graph'"):
            decoding.result(2, 93, True)
        assert_same_bits(call(batch, case, method="persistent"), call(batch, case, method="steps"))

    @pytest.mark.parametrize("method", ["graph", "persistent"])
    def test_threads_on_streams_of_their_own_share_weights(self, method):
        """Some meet in one graph, some record theirs at the same time."""
        cases = [published(n, stops="never") for n in (3, 4, 3, 7)]
        batches = [case.batch(torch.float16, "cuda") for case in cases]
        batches = [replace(batch, recurrent=batches[0].recurrent, output=batches[0].output) for batch in batches]
        expected = [call(batch, case, method="steps") for batch, case in zip(batches, cases, strict=True)]
        folded = fold_decoder(batches[0].recurrent, batches[0].output)
        together = threading.Barrier(len(cases))
        torch.cuda.synchronize()

        def speak(i: int) -> list[DecodeResult]:
            together.wait()
            with torch.cuda.stream(torch.cuda.Stream()):
                results = [call(batches[i], cases[i], method=method, folded=folded) for _ in range(5)]
                torch.cuda.current_stream().synchronize()
            return results

        with ThreadPoolExecutor(len(cases)) as pool:
            for results, one in zip(pool.map(speak, range(len(cases))), expected, strict=True):
                for result in results:
                    assert_same_bits(result, one)

    @pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
    @pytest.mark.parametrize("method", METHODS)
    def test_another_gpu_than_the_current_one(self, method):
        case = published(2)
        results = []
        for gpu in ("cuda:0", "cuda:1"):
            torch.manual_seed(0)
            results.append(call(case.batch(torch.float32, gpu), case, method=method).frames)
        assert results[1].device == torch.device("cuda:1")
        torch.testing.assert_close(results[1].to("cuda:0"), results[0], atol=1e-4, rtol=0)
