"""The teacher-forced loop: the hand-written backward against autograd in float64, the kernels against both."""

import dataclasses
import math
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fastglow.kernels import backend, launch
from fastglow.kernels.reference import teacher_forced_loop as reference
from fastglow.kernels.reference.teacher_forced_loop import Arguments
from fastglow.kernels.teacher_forced_loop import attention, attention_backward, backward, forward, gradients, replay

from .checks import EVERY_DTYPE, check_against_fp64, differentiate
from .teacher_forced_cases import CAPS, DEFINITION, DROPOUT, LOOP, PUBLISHED, Case

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
    arguments = case.arguments(torch.float64)

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return DEFINITION(**{**arguments, **dict(zip(Arguments._fields, tensors, strict=True))})

    assert gradcheck(function, tuple(arguments[name] for name in Arguments._fields), fast_mode=True)


def test_results_in_a_batch_equal_those_alone():
    arguments = Case().arguments(torch.float64)
    together = LOOP(**arguments)
    for item, length in enumerate(arguments["memory_lengths"].tolist()):
        alone = {
            **arguments,
            "decoder_inputs": arguments["decoder_inputs"][:, item : item + 1],
            "memory": arguments["memory"][item : item + 1, :length],
            "processed_memory": arguments["processed_memory"][item : item + 1, :length],
            "memory_lengths": arguments["memory_lengths"][item : item + 1],
        }
        hidden_context, alignment = LOOP(**alone)
        torch.testing.assert_close(together[0][item], hidden_context[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(together[1][item, :, :length], alignment[0], atol=1e-12, rtol=0)
        assert not together[1][item, :, length:].any()


@pytest.mark.parametrize("stream, units", [(reference.ATTENTION_STREAM, 6), (reference.DECODER_STREAM, 7)])
def test_masks_of_a_seed(stream, units):
    """They depend only on seed, stream, frame, item and unit, and drop units with the given probability."""

    def kept(seed=5, frame=3, items=4, units=units, p=0.25):
        return reference.kept_at_frame((items, units), p, seed, stream, frame, torch.device("cpu"))

    assert torch.equal(kept(), kept(items=9, units=40)[:4, :units])
    assert torch.equal(kept(), kept(seed=torch.tensor(5)))
    for other in (kept(seed=6), kept(frame=4), kept(items=5)[1:]):
        assert not torch.equal(kept(), other)
    assert abs(kept(items=100, units=400).double().mean() - 0.75) < 0.01
    assert kept(p=0.0).all()
    assert not kept(p=1.0).any()


# The hand-written backward in PyTorch, for CPUs.


@pytest.mark.parametrize("reached", [(True, True), (True, False), (False, True)], ids=["both", "hidden", "alignments"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_hand_written_backward(case, reached):
    arguments = case.arguments(torch.float64)
    upstream = [d if r else None for d, r in zip(case.upstream(torch.float64), reached, strict=True)]
    expected = differentiate(DEFINITION, arguments, upstream)
    if reached == (False, True):  # autograd has no gradients for the decoder LSTM
        zeros = {name: torch.zeros_like(arguments[name]) for name, d in expected.gradients.items() if d is None}
        expected = expected._replace(gradients={**expected.gradients, **zeros})
    torch.testing.assert_close(differentiate(LOOP, arguments, upstream), expected, atol=1e-12, rtol=0)


def test_an_item_without_symbols_gets_zeros_for_context():
    case = Case(frames=2)
    arguments = {**case.arguments(torch.float64), "memory_lengths": torch.tensor([7, 0, 3])}
    upstream = case.upstream(torch.float64)
    expected = differentiate(DEFINITION, arguments, upstream)
    assert not expected.outputs[0][1, :, case.n_decoder_rnn :].any()
    torch.testing.assert_close(differentiate(LOOP, arguments, upstream), expected, atol=1e-12, rtol=0)


def test_masks_from_pytorchs_generator_match_the_plain_loop():
    arguments, upstream = DROPOUT.arguments(torch.float64, seed=None), DROPOUT.upstream(torch.float64)
    results, states = [], []
    for function in (LOOP, DEFINITION):
        torch.manual_seed(3)
        results.append(differentiate(function, arguments, upstream))
        states.append(torch.get_rng_state())
    torch.testing.assert_close(*results, atol=1e-12, rtol=0)
    assert torch.equal(*states)


# The kernels.


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case, device, triton_backend):
    check_against_fp64(LOOP, DEFINITION, case.arguments(torch.float32, device), CAPS)


@pytest.mark.parametrize("case", [CASES[3], DROPOUT], ids=str)
def test_kernels_in_half_precision(case, device, triton_backend):
    check_against_fp64(LOOP, DEFINITION, case.arguments(torch.float16, device), CAPS)


@pytest.mark.parametrize("reached", [(True, False), (False, True)], ids=["hidden", "alignments"])
def test_gradients_of_one_output_alone(reached, device, triton_backend):
    check_against_fp64(LOOP, DEFINITION, DROPOUT.arguments(torch.float32, device), CAPS, reached=reached)


def test_kernels_with_an_item_without_symbols(device, triton_backend):
    arguments = Case(frames=2).arguments(torch.float32, device)
    arguments["memory_lengths"] = torch.tensor([7, 0, 3], device=device)
    check_against_fp64(LOOP, DEFINITION, arguments, CAPS)


@pytest.mark.parametrize("wanted", ["decoder_inputs", "memory", "attention_bias_hh", "location_dense"])
def test_one_gradient_alone(wanted, device, triton_backend):
    arguments = Case(frames=2).arguments(torch.float32, device)
    for name in Arguments._fields:
        arguments[name].requires_grad_(name == wanted)
    check_against_fp64(LOOP, DEFINITION, arguments, CAPS)


CONFIGS = {
    "teacher_forced_lstm_fwd": forward.LSTM_CONFIGS[4],
    "teacher_forced_energies_fwd": attention.ENERGIES_CONFIGS[4, True],
    "teacher_forced_context_fwd": attention.CONTEXT_CONFIGS[4],
    "teacher_forced_lstm_bwd": backward.LSTM_BACKWARD_CONFIGS[4],
    "teacher_forced_product_bwd": backward.PRODUCT_CONFIGS[4],
    "teacher_forced_energies_bwd": attention_backward.ENERGIES_BACKWARD_CONFIGS[4, True],
    "teacher_forced_attention_sums_bwd": attention_backward.ATTENTION_SUMS_CONFIGS[4, True],
}


@pytest.mark.parametrize("i", range(max(map(len, CONFIGS.values()))))
def test_other_launch_configurations(i, device, triton_backend):
    """Every kernel with its configuration i, or its last."""
    case = Case(frames=2, batch=2, symbols=19)
    with ExitStack() as stack:
        for kernel, configs in CONFIGS.items():
            stack.enter_context(launch.use_config(kernel, configs[min(i, len(configs) - 1)]))
        check_against_fp64(LOOP, DEFINITION, case.arguments(torch.float32, device), CAPS)


SMALL_BLOCKS = {
    "teacher_forced_energies_fwd": {"BT": 16, "BK": 16},
    "teacher_forced_context_bwd": {"BT": 16, "BK": 16, "BD": 16},
    "teacher_forced_energies_bwd": {"BT": 16, "BK": 16},
}


@pytest.mark.parametrize("chunks", [1, 2])
def test_more_positions_than_one_round_of_chunks(chunks, device, triton_backend):
    """A program takes several blocks of positions, and one block has few."""
    case = Case(frames=2, batch=2, symbols=35, taps=9)
    with ExitStack() as stack:
        for kernel, blocks in SMALL_BLOCKS.items():
            config = {**blocks, "CHUNKS": chunks, "num_warps": 4, "num_stages": 2}
            stack.enter_context(launch.use_config(kernel, config))
        check_against_fp64(LOOP, DEFINITION, case.arguments(torch.float32, device), CAPS)


def test_sums_over_segments_of_frames(device, triton_backend, monkeypatch):
    """Two segments of frames, of two and of one; four chunks of positions."""
    monkeypatch.setattr(gradients, "SMALLEST_SEGMENT", 2)
    with launch.use_config("teacher_forced_attention_sums_bwd", {"BT": 4, "BK": 16, "num_warps": 4, "num_stages": 2}):
        check_against_fp64(LOOP, DEFINITION, Case(batch=2, symbols=13).arguments(torch.float32, device), CAPS)


@pytest.mark.parametrize("batch", [32, 48, 64, 100, 128, 256])
def test_every_launch_of_a_frame_fills_a_gpu(batch, monkeypatch, triton_backend):
    """Without measurements, at the published sizes."""
    programs: dict[str, int] = {}

    def note(op, kernel, grid, *arguments, **options):
        backend.launches[op] += 1
        programs[kernel.__name__] = min(math.prod(grid), programs.get(kernel.__name__, math.prod(grid)))

    monkeypatch.setattr(replay, "launch", note)
    monkeypatch.setattr(gradients, "launch", note)
    case = dataclasses.replace(PUBLISHED, batch=batch, frames=1, symbols=128)
    with launch.compile_only():
        outputs = LOOP(**case.arguments(torch.float16, "meta"))
        torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
    del programs["teacher_forced_query_fwd_kernel"]  # a small product, not worth more parts
    # Smaller tiles of a large product would read more from the L2 cache.
    assert programs.pop("teacher_forced_lstm_fwd_kernel") >= 64
    assert len(programs) == 7
    assert min(programs.values()) >= 128


def test_split_products(device, triton_backend, monkeypatch):
    monkeypatch.setattr(gradients, "SMALLEST_DEPTH", 32)
    check_against_fp64(LOOP, DEFINITION, Case(frames=2, batch=2).arguments(torch.float32, device), CAPS)


def test_kernel_masks_match_the_references(device, triton_backend):
    arguments = DROPOUT.arguments(torch.float32, device)
    hidden_contexts, _ = LOOP(**arguments)
    p, seed = arguments["p_decoder_dropout"], arguments["seed"]
    for frame in range(DROPOUT.frames):
        hidden = hidden_contexts[:, frame, : DROPOUT.n_decoder_rnn]
        kept = reference.kept_at_frame(hidden.shape, p, seed, reference.DECODER_STREAM, frame, hidden.device)
        assert torch.equal(hidden != 0, kept)
    assert 0 < (hidden_contexts == 0).sum() < hidden_contexts.numel() / 2
    again, _ = LOOP(**{**arguments, "seed": torch.tensor(seed, device=device)})
    assert torch.equal(again, hidden_contexts)


# On a GPU, at full sizes.


@pytest.mark.gpu
@EVERY_DTYPE
def test_published_sizes(dtype, triton_backend):
    check_against_fp64(LOOP, DEFINITION, PUBLISHED.arguments(dtype, "cuda"), CAPS)


@pytest.mark.gpu
def test_published_sizes_in_tf32(triton_backend, allow_tf32):
    allow_tf32()
    check_against_fp64(LOOP, DEFINITION, PUBLISHED.arguments(torch.float32, "cuda"), {torch.float32: (1e-2, 4e-2)})
