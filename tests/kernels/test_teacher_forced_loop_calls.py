"""How the teacher-forced loop may be called: seeds, autocast, checkpointing, torch.compile, wrong arguments."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastglow.errors import FastglowError
from fastglow.kernels import backend, teacher_forced_loop
from fastglow.kernels.reference.teacher_forced_loop import Arguments

from .teacher_forced_cases import DROPOUT, Case, assert_same, call, cast, differentiate, upstream_of


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
    """Calls share nothing that a backward pass needs."""
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
    assert all(torch.equal(gradients[name], expected[name]) for name in Arguments._fields)


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
    tensors, lengths = case.tensors(torch.float32, device), case.lengths(device)
    upstream = [x.to(device) for x in upstream_of(case, torch.half)]
    with backend.use_backend(backend_name):
        expected = differentiate(teacher_forced_loop, cast(tensors, torch.float16), lengths, upstream)
        with torch.autocast(device, torch.float16):
            outputs, gradients = differentiate(teacher_forced_loop, tensors, lengths, upstream)
    assert all(x.dtype == torch.float16 for x in outputs)
    assert all(x.dtype == torch.float32 for x in gradients.values())
    assert_same((outputs, gradients), (expected[0], {name: x.float() for name, x in expected[1].items()}), atol=0)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about its own internals
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
        ("memory", (3, 7), r"memory has shape \[3, 7\], must be \[B, T_in, D\]"),
        ("decoder_inputs", (3, 5), r"decoder_inputs has shape \[3, 5\], must be \[T, 3, P\]"),
        ("decoder_inputs", (3, 2, 5), r"decoder_inputs has shape \[3, 2, 5\], must be \[T, 3, P\]"),
        ("processed_memory", (3, 6, 9), r"processed_memory has shape \[3, 6, 9\], must be \[3, 7, 9\]"),
        ("attention_weight_ih", (96, 18), r"attention_rnn.weight_ih has shape \[96, 18\], must be \[96, 17\]"),
        ("location_conv", (3, 2, 4), r"location_conv has 4 taps: use an odd number"),
        ("v", (9,), r"attention.v has shape \[9\], must be \[1, 9\]"),
        ("decoder_bias_hh", (67,), r"decoder_rnn.bias_hh has shape \[67\], must be \[68\]"),
    ],
)
def test_wrong_shapes(name, shape, message):
    tensors = {**Case().tensors(torch.float32), name: torch.zeros(shape)}
    with pytest.raises(FastglowError, match=message):
        call(teacher_forced_loop, tensors, Case().lengths())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p_attention_dropout": 1.5}, "p_attention_dropout=1.5 must be between 0 and 1"),
        ({"p_decoder_dropout": -0.1}, "p_decoder_dropout=-0.1 must be between 0 and 1"),
        ({"seed": torch.zeros(2)}, r"seed is a float32 tensor of shape \[2\] on cpu: pass an integer, or"),
        ({"seed": 2**63}, f"seed={2**63} does not fit in 64 bits"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(FastglowError, match=message):
        call(teacher_forced_loop, Case().tensors(torch.float32), Case().lengths(), **options)


def test_wrong_lengths():
    with pytest.raises(FastglowError, match=r"memory_lengths has shape \[2\], must be \[3\]"):
        call(teacher_forced_loop, Case().tensors(torch.float32), torch.tensor([7, 1]))
