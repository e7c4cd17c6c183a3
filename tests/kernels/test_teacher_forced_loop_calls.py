"""How the teacher-forced loop may be called: seeds, autocast, checkpointing, torch.compile, wrong arguments."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastglow.kernels import backend
from fastglow.kernels.reference.teacher_forced_loop import Arguments

from .checks import (
    assert_kernels_refuse,
    assert_refused,
    assert_same_bits,
    assert_seeded_by_pytorch,
    cast,
    differentiate,
)
from .teacher_forced_cases import DROPOUT, LOOP, Case


def test_seeds_are_drawn_from_pytorchs_generator(device, triton_backend):
    arguments = Case(frames=1, p_decoder_dropout=0.5).arguments(torch.float32, device, seed=None)
    assert_seeded_by_pytorch(lambda: LOOP(**arguments)[0])


def test_backward_passes_of_two_interleaved_calls(device, triton_backend):
    """Calls share nothing that a backward pass needs."""
    cases = Case(frames=2, p_decoder_dropout=0.2), Case(frames=3, symbols=4, p_decoder_dropout=0.2)
    arguments = [case.arguments(torch.float32, device) for case in cases]
    upstream = [case.upstream(torch.float32, device) for case in cases]
    alone = [differentiate(LOOP, x, d) for x, d in zip(arguments, upstream, strict=True)]
    outputs = [LOOP(**x) for x in arguments]
    for i in (1, 0, 0):
        leaves = [arguments[i][name] for name in Arguments._fields]
        gradients = torch.autograd.grad(outputs[i], leaves, upstream[i], retain_graph=True)
        assert_same_bits(dict(zip(Arguments._fields, gradients, strict=True)), alone[i].gradients)


@pytest.mark.parametrize("backend_name", ["triton", "reference"])
def test_alignments_may_be_changed_in_place(backend_name, device):
    case = Case(frames=2)
    arguments = case.arguments(torch.float32, device)
    hidden_contexts, alignments = case.upstream(torch.float32, device)

    def doubling(**arguments) -> tuple[Tensor, Tensor]:
        hidden_contexts, alignments = LOOP(**arguments)
        return hidden_contexts, alignments.mul_(2)

    with backend.use_backend(backend_name):
        doubled = differentiate(doubling, arguments, [hidden_contexts, alignments / 2])
        expected = differentiate(LOOP, arguments, [hidden_contexts, alignments])
    assert_same_bits(doubled.gradients, expected.gradients)


def test_checkpointing_changes_nothing(device, triton_backend):
    arguments, upstream = DROPOUT.arguments(torch.float32, device, seed=None), DROPOUT.upstream(torch.float32, device)

    def checkpointed(**arguments) -> tuple[Tensor, Tensor]:
        return checkpoint(LOOP, use_reentrant=False, **arguments)

    results = []
    for function in (LOOP, checkpointed):
        torch.manual_seed(4)
        results.append(differentiate(function, arguments, upstream))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend_name", ["triton", "reference"])
def test_autocast_computes_in_its_dtype(backend_name, device):
    case = Case(frames=2)
    arguments, upstream = case.arguments(torch.float32, device), case.upstream(torch.float16, device)
    with backend.use_backend(backend_name):
        expected = differentiate(LOOP, cast(arguments, torch.float16), upstream)
        with torch.autocast(device, torch.float16):
            results = differentiate(LOOP, arguments, upstream)
    assert all(x.dtype == torch.float16 for x in results.outputs)
    assert_same_bits(results.outputs, expected.outputs)
    assert_same_bits(results.gradients, {name: x.float() for name, x in expected.gradients.items()})


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about its own internals
def test_in_compiled_code(device, triton_backend):
    case = Case(frames=2, p_decoder_dropout=0.2)
    arguments, upstream = case.arguments(torch.float32, device), case.upstream(torch.float32, device)

    def function(**arguments):
        hidden_contexts, alignments = LOOP(**arguments)
        return hidden_contexts + 1, alignments

    expected = differentiate(function, arguments, upstream)
    assert_same_bits(differentiate(torch.compile(function, backend="eager"), arguments, upstream), expected)


@pytest.mark.parametrize("case", [Case(frames=0), Case(batch=0)], ids=str)
@pytest.mark.parametrize("backend_name", ["triton", "reference"])
def test_empty_inputs(case, backend_name, device):
    arguments, upstream = case.arguments(torch.float32, device), case.upstream(torch.float32, device)
    with backend.use_backend(backend_name):
        outputs, gradients = differentiate(LOOP, arguments, upstream)
    assert outputs[0].shape == (case.batch, case.frames, case.n_decoder_rnn + case.n_memory)
    assert outputs[1].shape == (case.batch, case.frames, case.symbols)
    assert not any(x.any() for x in gradients.values())


def test_unsupported_calls_fall_back_or_are_refused(device):
    arguments = Case(frames=1).arguments(torch.float64, device)
    assert LOOP(**arguments)[0].dtype == torch.float64
    assert_kernels_refuse("teacher_forced_loop: .* float64 is not among", LOOP, **arguments)
    mixed = {**cast(arguments, torch.float32), "v": arguments["v"]}
    assert_kernels_refuse("its tensors have the dtypes float32, float64", LOOP, **mixed)
    wide = Case(frames=1, n_attention=257).arguments(torch.float32, device)
    assert_kernels_refuse("attention dimension 257 is above 256", LOOP, **wide)


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
        ("memory_lengths", (2,), r"memory_lengths has shape \[2\], must be \[3\]"),
    ],
)
def test_wrong_shapes(name, shape, message):
    assert_refused(message, LOOP, **{**Case().arguments(torch.float32), name: torch.zeros(shape)})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"p_attention_dropout": 1.5}, "p_attention_dropout=1.5 must be between 0 and 1"),
        ({"p_decoder_dropout": -0.1}, "p_decoder_dropout=-0.1 must be between 0 and 1"),
        ({"seed": torch.zeros(2)}, r"seed has dtype float32, shape \[2\], device cpu: pass an integer, or"),
        ({"seed": 2**63}, f"seed={2**63} does not fit in 64 bits"),
    ],
)
def test_wrong_options(options, message):
    assert_refused(message, LOOP, **{**Case().arguments(torch.float32), **options})
