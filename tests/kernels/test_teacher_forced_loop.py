"""The decoder's loop in training: its backward by hand against autograd in float64, its kernels against both."""

import importlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from fastglow.errors import FastglowError
from fastglow.kernels import backend, launch, teacher_forced_loop
from fastglow.kernels.decoder_weights import AttentionWeights, LSTMWeights, RecurrentWeights
from fastglow.kernels.reference import teacher_forced_loop as reference

from .conftest import assert_as_exact_as
from .rounding import drawn

module = importlib.import_module("fastglow.kernels.teacher_forced_loop")

CAPS = {torch.float32: (1e-5, 2e-5), torch.float16: (1e-2, 4e-2), torch.bfloat16: (8e-2, 3e-1)}
TENSORS = (
    "decoder_inputs", "memory", "processed_memory",
    "attention weight_ih", "attention weight_hh", "attention bias_ih", "attention bias_hh",
    "query", "location_conv", "location_dense", "v",
    "decoder weight_ih", "decoder weight_hh", "decoder bias_ih", "decoder bias_hh",
)  # fmt: skip


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
        changed = [f"{f.name} {getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed) or "default"

    def tensors(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """By the names of TENSORS; activations stay of order 1."""

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
                TENSORS,
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
        """The first item is the longest, the last one has a single symbol."""
        return torch.linspace(self.symbols, 1, self.batch, device=device).long()

    def options(self, seed: int | None = 77) -> dict:
        drops = self.p_attention_dropout or self.p_decoder_dropout
        return {
            "p_attention_dropout": self.p_attention_dropout,
            "p_decoder_dropout": self.p_decoder_dropout,
            "seed": seed if drops else None,
        }


DROPOUT = Case(frames=2, p_attention_dropout=0.3, p_decoder_dropout=0.2)
CASES = [
    Case(),
    Case(batch=17, frames=1, symbols=3),
    Case(frames=1, batch=1, symbols=1, taps=1, filters=1),
    Case(symbols=35, taps=31, batch=2, frames=2),
    Case(n_attention=20, n_attention_rnn=70, n_decoder_rnn=33, n_memory=40, strided=True),
    Case(frames=2, p_attention_dropout=0.5),
    Case(frames=2, p_decoder_dropout=1.0),
    DROPOUT,
]


def call(function: Callable, tensors: dict[str, Tensor], lengths: Tensor, **options) -> tuple[Tensor, Tensor]:
    x, memory, processed, *weights = tensors.values()
    weights = RecurrentWeights(LSTMWeights(*weights[:4]), AttentionWeights(*weights[4:8]), LSTMWeights(*weights[8:]))
    return function(x, memory, processed, lengths, weights, **options)


def cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: x.detach().to(dtype).requires_grad_(x.requires_grad) for name, x in tensors.items()}


def upstream_of(case: Case, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    sizes = (case.n_decoder_rnn + case.n_memory, case.symbols)
    return [torch.randn(case.batch, case.frames, n, device=device).to(dtype) for n in sizes]


def differentiate(
    function: Callable, tensors: dict[str, Tensor], lengths: Tensor, upstream: list[Tensor | None], **options
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(outputs, gradients by name) under the upstream gradients; None counts as not reached."""
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


# The definition.


def test_gradients_of_the_definition():
    case = Case(frames=2, batch=2, symbols=3, n_input=2, n_memory=2, n_attention=2, n_attention_rnn=2, n_decoder_rnn=2)
    tensors, lengths = case.tensors(torch.float64), case.lengths()

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return call(reference.teacher_forced_loop, dict(zip(TENSORS, values, strict=True)), lengths)

    assert gradcheck(function, tuple(tensors.values()), fast_mode=True)


def test_an_item_gets_what_it_gets_alone():
    case = Case()
    tensors, lengths = case.tensors(torch.float64), case.lengths()
    together = call(teacher_forced_loop, tensors, lengths)
    for item, length in enumerate(lengths.tolist()):
        alone = {
            **tensors,
            "decoder_inputs": tensors["decoder_inputs"][:, item : item + 1],
            "memory": tensors["memory"][item : item + 1, :length],
            "processed_memory": tensors["processed_memory"][item : item + 1, :length],
        }
        hidden_context, alignment = call(teacher_forced_loop, alone, lengths[item : item + 1])
        torch.testing.assert_close(together[0][item], hidden_context[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(together[1][item, :, :length], alignment[0], atol=1e-12, rtol=0)
        assert not together[1][item, :, length:].any()


@pytest.mark.parametrize("stream, units", [(reference.ATTENTION_STREAM, 6), (reference.DECODER_STREAM, 7)])
def test_masks_of_a_seed(stream, units):
    """They depend on seed, stream, frame, item and unit only, and drop as many units as they are to."""

    def kept(seed=5, frame=3, items=4, units=units, p=0.25):
        return reference.kept_at_frame((items, units), p, seed, stream, frame, torch.device("cpu"))

    assert torch.equal(kept(), kept(items=9, units=40)[:4, :units])
    assert torch.equal(kept(), kept(seed=torch.tensor(5)))
    for other in (kept(seed=6), kept(frame=4), kept(items=5)[1:]):
        assert not torch.equal(kept(), other)
    assert abs(kept(items=100, units=400).double().mean() - 0.75) < 0.01
    assert kept(p=0.0).all()
    assert not kept(p=1.0).any()


# Its backward by hand in PyTorch, which serves on a CPU.


@pytest.mark.parametrize("reached", [(True, True), (True, False), (False, True)], ids=["both", "hidden", "alignments"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_by_hand(case, reached):
    tensors, lengths = case.tensors(torch.float64), case.lengths()
    upstream = [d if r else None for d, r in zip(upstream_of(case, torch.float64), reached, strict=True)]
    expected = differentiate(reference.teacher_forced_loop, tensors, lengths, upstream, **case.options())
    if reached == (False, True):  # autograd has no gradients for the decoder LSTM
        zeros = {name: torch.zeros_like(tensors[name]) for name, d in expected[1].items() if d is None}
        expected = expected[0], {**expected[1], **zeros}
    assert_same(differentiate(teacher_forced_loop, tensors, lengths, upstream, **case.options()), expected)


def test_an_item_without_symbols_gets_zeros_for_context():
    case = Case(frames=2)
    tensors, lengths = case.tensors(torch.float64), torch.tensor([7, 0, 3])
    upstream = upstream_of(case, torch.float64)
    expected = differentiate(reference.teacher_forced_loop, tensors, lengths, upstream)
    assert not expected[0][0][1, :, case.n_decoder_rnn :].any()
    assert_same(differentiate(teacher_forced_loop, tensors, lengths, upstream), expected)


def test_pytorchs_random_numbers_are_those_of_the_plain_loop():
    tensors, lengths, upstream = DROPOUT.tensors(torch.float64), DROPOUT.lengths(), upstream_of(DROPOUT, torch.float64)
    results, states = [], []
    for function in (teacher_forced_loop, reference.teacher_forced_loop):
        torch.manual_seed(3)
        results.append(differentiate(function, tensors, lengths, upstream, **DROPOUT.options(seed=None)))
        states.append(torch.get_rng_state())
    assert_same(*results)
    assert torch.equal(*states)


# The kernels.


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


@pytest.fixture
def on_reference():
    """The exact results come from the PyTorch implementation, whatever the tensors' device."""
    with backend.use_backend("reference"):
        yield


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case, device, poison, on_reference):
    check_against_fp64(case, case.tensors(torch.float32, device), case.lengths(device), CAPS[torch.float32])


@pytest.mark.parametrize("case", [CASES[3], DROPOUT], ids=str)
def test_kernels_in_half_precision(case, device, poison, on_reference):
    check_against_fp64(case, case.tensors(torch.float16, device), case.lengths(device), CAPS[torch.float16])


@pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["hidden", "alignments"])
def test_gradients_of_one_output_alone(reached, device, poison, on_reference):
    check_against_fp64(DROPOUT, DROPOUT.tensors(torch.float32, device), DROPOUT.lengths(device), (1e-5, 2e-5), reached)


def test_kernels_and_an_item_without_symbols(device, poison, on_reference):
    case = Case(frames=2)
    lengths = torch.tensor([7, 0, 3], device=device)
    check_against_fp64(case, case.tensors(torch.float32, device), lengths, CAPS[torch.float32])


@pytest.mark.parametrize("wanted", ["decoder_inputs", "memory", "attention bias_hh", "location_dense"])
def test_one_gradient_alone(wanted, device, poison, on_reference):
    tensors = Case(frames=2).tensors(torch.float32, device)
    for name, x in tensors.items():
        x.requires_grad_(name == wanted)
    check_against_fp64(Case(frames=2), tensors, Case(frames=2).lengths(device), CAPS[torch.float32])


def test_kernels_drop_what_the_seed_says(device, triton_backend):
    tensors, lengths = DROPOUT.tensors(torch.float32, device), DROPOUT.lengths(device)
    options = DROPOUT.options()
    hidden_contexts, _ = call(teacher_forced_loop, tensors, lengths, **options)
    p, seed = options["p_decoder_dropout"], options["seed"]
    for frame in range(DROPOUT.frames):
        hidden = hidden_contexts[:, frame, : DROPOUT.n_decoder_rnn]
        kept = reference.kept_at_frame(hidden.shape, p, seed, reference.DECODER_STREAM, frame, hidden.device)
        assert torch.equal(hidden != 0, kept)
    assert 0 < (hidden_contexts == 0).sum() < hidden_contexts.numel() / 2
    again, _ = call(teacher_forced_loop, tensors, lengths, **{**options, "seed": torch.tensor(seed, device=device)})
    assert torch.equal(again, hidden_contexts)


def test_seeds_are_drawn_from_pytorchs_generator(device, triton_backend):
    case = Case(frames=1, p_decoder_dropout=0.5)
    tensors, lengths = case.tensors(torch.float32, device), case.lengths(device)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(call(teacher_forced_loop, tensors, lengths, **case.options(seed=None))[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_two_calls_before_their_backward_passes_and_one_of_them_twice(device, triton_backend):
    """Nothing that a backward pass needs is shared by calls."""
    cases = Case(frames=2, p_decoder_dropout=0.2), Case(frames=3, symbols=4, p_decoder_dropout=0.2)
    tensors = [case.tensors(torch.float32, device) for case in cases]
    upstream = [upstream_of(case, torch.float32, device) for case in cases]
    alone = [
        differentiate(teacher_forced_loop, x, case.lengths(device), d, **case.options())
        for case, x, d in zip(cases, tensors, upstream, strict=True)
    ]
    outputs = [
        call(teacher_forced_loop, x, case.lengths(device), **case.options())
        for case, x in zip(cases, tensors, strict=True)
    ]
    for i in (1, 0, 0):
        gradients = torch.autograd.grad(outputs[i], list(tensors[i].values()), upstream[i], retain_graph=True)
        assert all(torch.equal(x, y) for x, y in zip(gradients, alone[i][1].values(), strict=True))


@pytest.mark.parametrize("backend_name", ["triton", "reference"])
def test_alignments_may_be_changed_in_place(backend_name, device):
    case = Case(frames=2)
    tensors, lengths = case.tensors(torch.float32, device), case.lengths(device)
    hidden_contexts, alignments = upstream_of(case, torch.float32, device)

    def doubling(*arguments, **options) -> tuple[Tensor, Tensor]:
        hidden_contexts, alignments = teacher_forced_loop(*arguments, **options)
        return hidden_contexts, alignments.mul_(2)

    with backend.use_backend(backend_name):
        _, gradients = differentiate(doubling, tensors, lengths, [hidden_contexts, alignments / 2])
        _, expected = differentiate(teacher_forced_loop, tensors, lengths, [hidden_contexts, alignments])
    assert all(torch.equal(gradients[name], expected[name]) for name in TENSORS)


def test_checkpointing_changes_nothing(device, triton_backend):
    tensors, lengths = DROPOUT.tensors(torch.float32, device), DROPOUT.lengths(device)
    upstream = upstream_of(DROPOUT, torch.float32, device)

    def checkpointed(*arguments, **options) -> tuple[Tensor, Tensor]:
        return checkpoint(teacher_forced_loop, *arguments, use_reentrant=False, **options)

    results = []
    for function in (teacher_forced_loop, checkpointed):
        torch.manual_seed(4)
        results.append(differentiate(function, tensors, lengths, upstream, **DROPOUT.options(seed=None)))
    assert_same(*results, atol=0)


@pytest.mark.parametrize("backend_name", ["triton", "reference"])
def test_autocast_computes_in_its_dtype(backend_name, device):
    case = Case(frames=2)
    tensors, lengths, upstream = (
        case.tensors(torch.float32, device),
        case.lengths(device),
        upstream_of(case, torch.half),
    )
    upstream = [x.to(device) for x in upstream]
    halves = {name: x.detach().half().requires_grad_() for name, x in tensors.items()}
    with backend.use_backend(backend_name):
        expected = differentiate(teacher_forced_loop, halves, lengths, upstream)
        with torch.autocast(device, torch.float16):
            outputs, gradients = differentiate(teacher_forced_loop, tensors, lengths, upstream)
    assert all(x.dtype == torch.float16 for x in outputs)
    assert all(x.dtype == torch.float32 for x in gradients.values())
    assert_same((outputs, gradients), (expected[0], {name: x.float() for name, x in expected[1].items()}), atol=0)


class Recorded:
    """A graph that launches, replay by replay, what a CUDA graph would."""

    def __init__(self, loop, device):
        self.clock, self.table = module._new_clock(device), module._new_table(loop, device)
        self.graph = SimpleNamespace(replay=lambda: module._launch_replay(loop.step, self.clock, self.table))


@pytest.fixture
def graphs(monkeypatch) -> OrderedDict:
    """The graphs, of two frames, which are kept on a CPU too."""
    monkeypatch.setattr(module, "FRAMES_PER_GRAPH", 2)
    monkeypatch.setattr(module, "_Graph", Recorded)
    monkeypatch.setattr(module, "_stream_to_record_on", lambda device: 0)
    monkeypatch.setattr(module, "_graphs", OrderedDict())
    return module._graphs


def test_graphs_of_frames_serve_any_length(device, triton_backend, graphs):
    """The first call launches, the second records what later ones replay."""
    for i, (frames, symbols) in enumerate(((1, 7), (3, 7), (2, 4))):
        case = Case(frames=frames, symbols=symbols, p_attention_dropout=0.2)
        tensors, upstream = case.tensors(torch.float32, device), upstream_of(case, torch.float32, device)
        arguments = tensors, case.lengths(device), upstream
        ours = differentiate(teacher_forced_loop, *arguments, **case.options())
        recorded = OrderedDict(graphs)
        graphs.clear()
        launched = differentiate(teacher_forced_loop, *arguments, **case.options())
        graphs.clear()
        graphs.update(recorded)
        assert_same(ours, launched, atol=0)
        assert [graph is not None for graph in graphs.values()] == [i > 0, i > 0]  # forward and backward
    assert [graph.clock.tolist() for graph in graphs.values()] == [[2, 2, 4]] * 2


def test_no_kernel_is_loaded_while_a_graph_is_recorded(device, triton_backend, graphs, monkeypatch):
    loaded = set()

    def note(op, kernel, grid, *arguments, **options):
        numbers = [x for x in arguments if not isinstance(x, Tensor)]
        if kernel is not module.teacher_forced_advance_kernel:
            numbers = numbers[1:]  # all frames are served by one binary
        options.pop("device")
        loaded.add((kernel, *numbers, *options.items()))
        launch.launch(op, kernel, grid, *arguments, device=arguments[0].device, **options)

    monkeypatch.setattr(module, "launch", note)
    case = Case(frames=1)
    arguments = case.tensors(torch.float32, device), case.lengths(device), upstream_of(case, torch.float32, device)
    differentiate(teacher_forced_loop, *arguments)
    loaded_before = set(loaded)
    differentiate(teacher_forced_loop, *arguments)
    assert all(graph is not None for graph in graphs.values())
    assert loaded == loaded_before


def test_a_call_that_fails_leads_to_no_graph(device, poison, graphs, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "launch", fail)
    with backend.use_backend("triton"), pytest.raises(RuntimeError, match="out of memory"):
        call(teacher_forced_loop, Case().tensors(torch.float32, device), Case().lengths(device))
    assert not graphs


def test_tables_are_written_whatever_the_default_device(device):
    table = torch.zeros(3, dtype=torch.int64, device=device)
    with torch.device("meta"):
        module._set(table, (1, 2, 2**62))
    assert table.tolist() == [1, 2, 2**62]


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_in_compiled_code(device, triton_backend):
    case = Case(frames=2, p_decoder_dropout=0.2)
    tensors, lengths = case.tensors(torch.float32, device), case.lengths(device)
    upstream = upstream_of(case, torch.float32, device)

    def function(*arguments, **options):
        hidden_contexts, alignments = teacher_forced_loop(*arguments, **options)
        return hidden_contexts + 1, alignments

    outputs, gradients = differentiate(function, tensors, lengths, upstream, **case.options())
    compiled = torch.compile(function, backend="eager")
    assert_same(differentiate(compiled, tensors, lengths, upstream, **case.options()), (outputs, gradients), atol=0)


@pytest.mark.parametrize(
    "kernel, candidates",
    [
        ("teacher_forced_lstm_fwd", module.LSTM_CONFIGS[4]),
        ("teacher_forced_product_bwd", module.PRODUCT_CONFIGS[4]),
        ("teacher_forced_attend_fwd", module.ATTEND_CONFIGS[4, True]),
        ("teacher_forced_attend_bwd", module.ATTEND_BACKWARD_CONFIGS[4, True]),
    ],
)
def test_other_launch_configurations(kernel, candidates, device, poison, on_reference):
    case = Case(frames=2, batch=2, symbols=19)
    for config in candidates:
        with launch.use_config(kernel, config):
            check_against_fp64(case, case.tensors(torch.float32, device), case.lengths(device), CAPS[torch.float32])


def test_products_in_parts(device, poison, on_reference, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST_DEPTH", 32)
    case = Case(frames=2, batch=2)
    check_against_fp64(case, case.tensors(torch.float32, device), case.lengths(device), CAPS[torch.float32])


@pytest.mark.parametrize("case", [Case(frames=0), Case(batch=0)], ids=str)
@pytest.mark.parametrize("backend_name", ["triton", "reference"])
def test_nothing_to_do(case, backend_name, device):
    tensors = case.tensors(torch.float32, device)
    with backend.use_backend(backend_name):
        outputs, gradients = differentiate(
            teacher_forced_loop, tensors, case.lengths(device), upstream_of(case, torch.float32, device)
        )
    assert outputs[0].shape == (case.batch, case.frames, case.n_decoder_rnn + case.n_memory)
    assert outputs[1].shape == (case.batch, case.frames, case.symbols)
    assert not any(x.any() for x in gradients.values())


def test_what_the_kernels_do_not_serve_falls_back_or_is_refused(device):
    case = Case(frames=1)
    tensors, lengths = case.tensors(torch.float64, device), case.lengths(device)
    assert call(teacher_forced_loop, tensors, lengths)[0].dtype == torch.float64
    with backend.use_backend("triton"):
        with pytest.raises(FastglowError, match="teacher_forced_loop: .* float64 is not among"):
            call(teacher_forced_loop, tensors, lengths)
        tensors = {**cast(tensors, torch.float32), "v": tensors["v"]}
        with pytest.raises(FastglowError, match="its tensors have the dtypes float32, float64"):
            call(teacher_forced_loop, tensors, lengths)
        case = Case(frames=1, n_attention=257)
        with pytest.raises(FastglowError, match="attention dimension 257 is above 256"):
            call(teacher_forced_loop, case.tensors(torch.float32, device), lengths)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("decoder_inputs", (3, 5), r"the inputs have shapes \(3, 5\), \(3, 7, 12\), \(3, 7, 9\): pass \[T, B, P\]"),
        ("decoder_inputs", (3, 2, 5), r"decoder_inputs has shape \(3, 2, 5\), not \(3, 3, 5\), beside memory"),
        ("processed_memory", (3, 6, 9), r"processed_memory has shape \(3, 6, 9\), not \(3, 7, 9\)"),
        ("attention weight_ih", (96, 18), r"attention_rnn.weight_ih has shape \(96, 18\), not \(96, 17\)"),
        ("location_conv", (3, 2, 4), r"location_conv has 4 taps: use an odd number"),
        ("v", (9,), r"attention.v has shape \(9,\), not \(1, 9\)"),
        ("decoder bias_hh", (67,), r"decoder_rnn.bias_hh has shape \(67,\), not \(68,\)"),
    ],
)
def test_wrong_shapes(name, shape, message):
    tensors = {**Case().tensors(torch.float32), name: torch.zeros(shape)}
    with pytest.raises(FastglowError, match=message):
        call(teacher_forced_loop, tensors, Case().lengths())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p_attention_dropout": 1.5}, "p_attention_dropout 1.5 is no probability: use 0 to 1"),
        ({"p_decoder_dropout": -0.1}, "p_decoder_dropout -0.1 is no probability"),
        ({"seed": torch.zeros(2)}, r"seed is a tensor of shape \(2,\), torch.float32 on cpu: pass an integer, or"),
        ({"seed": 2**63}, f"seed {2**63} does not fit 64 bits"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(FastglowError, match=message):
        call(teacher_forced_loop, Case().tensors(torch.float32), Case().lengths(), **options)


def test_wrong_lengths():
    with pytest.raises(FastglowError, match=r"memory_lengths has shape \(2,\), not \(3,\)"):
        call(teacher_forced_loop, Case().tensors(torch.float32), torch.tensor([7, 1]))


# On a GPU: full sizes, and what only a GPU has.

PUBLISHED = Case(
    frames=40, batch=17, symbols=93, n_input=256, n_memory=512, n_attention=128, n_attention_rnn=1024,
    n_decoder_rnn=1024, filters=32, taps=31, p_attention_dropout=0.1, p_decoder_dropout=0.1,
)  # fmt: skip
CAPS_TF32 = (1e-2, 4e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_published_sizes(dtype, poison, on_reference):
    check_against_fp64(PUBLISHED, PUBLISHED.tensors(dtype, "cuda"), PUBLISHED.lengths("cuda"), CAPS[dtype])


@pytest.mark.gpu
def test_published_sizes_in_tf32(poison, on_reference):
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        tensors = PUBLISHED.tensors(torch.float32, "cuda")
        check_against_fp64(PUBLISHED, tensors, PUBLISHED.lengths("cuda"), CAPS_TF32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
def test_replays_give_the_bits_of_launches_at_any_length(triton_backend):
    """The first call launches, the second records, later ones of any length and text replay."""
    module._graphs.clear()
    for frames, symbols in ((40, 93), (40, 93), (1, 20), (33, 64), (16, 93)):
        case = Case(**{**vars(PUBLISHED), "frames": frames, "symbols": symbols})
        tensors, lengths = case.tensors(torch.float16, "cuda"), case.lengths("cuda")
        upstream = upstream_of(case, torch.float16, "cuda")
        ours = differentiate(teacher_forced_loop, tensors, lengths, upstream, **case.options())
        recorded = dict(module._graphs)
        module._graphs.clear()
        launched = differentiate(teacher_forced_loop, tensors, lengths, upstream, **case.options())
        module._graphs.clear()
        module._graphs.update(recorded)
        assert_same(ours, launched, atol=0)
    assert len(module._graphs) == 2  # forward and backward
    assert all(graph is not None for graph in module._graphs.values())


@pytest.mark.gpu
def test_streams_have_graphs_of_their_own(triton_backend):
    """None waits for another one, so each needs its own clock and table."""
    module._graphs.clear()
    case = Case(**{**vars(PUBLISHED), "frames": 20})
    arguments = case.tensors(torch.float16, "cuda"), case.lengths("cuda"), upstream_of(case, torch.float16, "cuda")
    expected = differentiate(teacher_forced_loop, *arguments, **case.options())
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(4):
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(differentiate(teacher_forced_loop, *arguments, **case.options()))
        torch.cuda.synchronize()
        for result in results:
            assert_same(result, expected, atol=0)
    assert {stream for *_, stream in module._graphs} == {0, *(stream.cuda_stream for stream in streams)}


@pytest.mark.gpu
def test_inside_a_cuda_graph(triton_backend):
    case = Case(**{**vars(PUBLISHED), "frames": 5})
    tensors, lengths = case.tensors(torch.float16, "cuda"), case.lengths("cuda")
    upstream = upstream_of(case, torch.float16, "cuda")
    seed = torch.tensor(1, device="cuda")
    options = {**case.options(), "seed": seed}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        differentiate(teacher_forced_loop, tensors, lengths, upstream, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        recorded = differentiate(teacher_forced_loop, tensors, lengths, upstream, **options)
    for value in (2, 3):
        seed.fill_(value)
        with torch.no_grad():
            tensors["memory"].normal_()
        graph.replay()
        assert_same(recorded, differentiate(teacher_forced_loop, tensors, lengths, upstream, **options), atol=0)
