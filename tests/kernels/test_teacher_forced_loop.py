"""The teacher-forced loop: the hand-written backward against autograd in float64, the kernels against both."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fastglow.kernels import backend, launch, teacher_forced_loop
from fastglow.kernels.reference import teacher_forced_loop as reference
from fastglow.kernels.reference.teacher_forced_loop import Arguments
from fastglow.kernels.teacher_forced_loop import backward, forward, gradients

from .teacher_forced_cases import (
    CAPS,
    DROPOUT,
    PUBLISHED,
    Case,
    assert_same,
    call,
    check_against_fp64,
    differentiate,
    upstream_of,
)

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


# The definition.


def test_gradients_of_the_definition():
    case = Case(frames=2, batch=2, symbols=3, n_input=2, n_memory=2, n_attention=2, n_attention_rnn=2, n_decoder_rnn=2)
    tensors, lengths = case.tensors(torch.float64), case.lengths()

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return call(reference.teacher_forced_loop, dict(zip(Arguments._fields, values, strict=True)), lengths)

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


# The hand-written backward in PyTorch, which serves on a CPU.


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


@pytest.mark.parametrize("wanted", ["decoder_inputs", "memory", "attention_bias_hh", "location_dense"])
def test_one_gradient_alone(wanted, device, poison, on_reference):
    tensors = Case(frames=2).tensors(torch.float32, device)
    for name, x in tensors.items():
        x.requires_grad_(name == wanted)
    check_against_fp64(Case(frames=2), tensors, Case(frames=2).lengths(device), CAPS[torch.float32])


@pytest.mark.parametrize(
    "kernel, candidates",
    [
        ("teacher_forced_lstm_fwd", forward.LSTM_CONFIGS[4]),
        ("teacher_forced_product_bwd", backward.PRODUCT_CONFIGS[4]),
        ("teacher_forced_attend_fwd", forward.ATTEND_CONFIGS[4, True]),
        ("teacher_forced_attend_bwd", backward.ATTEND_BACKWARD_CONFIGS[4, True]),
    ],
)
def test_other_launch_configurations(kernel, candidates, device, poison, on_reference):
    case = Case(frames=2, batch=2, symbols=19)
    for config in candidates:
        with launch.use_config(kernel, config):
            check_against_fp64(case, case.tensors(torch.float32, device), case.lengths(device), CAPS[torch.float32])


def test_products_in_parts(device, poison, on_reference, monkeypatch):
    monkeypatch.setattr(gradients, "SMALLEST_DEPTH", 32)
    case = Case(frames=2, batch=2)
    check_against_fp64(case, case.tensors(torch.float32, device), case.lengths(device), CAPS[torch.float32])


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


# On a GPU, at full sizes.

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
