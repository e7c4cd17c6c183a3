"""The free-running decoder: its reference against one item at a time, its kernels against the reference."""

from dataclasses import replace

import pytest
import torch
import triton.language as tl

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import fold_decoder
from fastglow.kernels.decode_loop import tiles

from .checks import DEVICE, assert_as_exact_as, assert_same_bits
from .decode_loop_cases import (
    CAPS,
    CASES,
    MANY,
    Case,
    call,
    check,
    decode_one,
    reference,
    short_graphs,  # noqa: F401
)

REFERENCE_CASES = [
    Case(),
    Case(p_prenet_dropout=0.0),
    Case((4, 0, 6, 1), gate_threshold=0.3, lengths_dtype=torch.int32),
    Case(early_stopping=False, max_steps=9),
    Case(stops="never"),
    Case(stops="at once"),
    Case(stops="at once", early_stopping=False),
    Case((0, 0), stops="never"),
    Case(taps=1, n_prenet=(9, 5, 3), strided=True),
    Case((3,), stops="never", max_steps=67),  # more than NOISE_BLOCK
]


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=str)
def test_reference_results_in_a_batch_equal_those_alone(case):
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


@pytest.mark.usefixtures("triton_backend", "short_graphs")
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

    @pytest.mark.skipif(DEVICE == "cuda", reason="compiled kernels keep the constant; GPU tests have larger sizes")
    def test_query_with_several_blocks_of_partial_sums(self, device, monkeypatch):
        monkeypatch.setattr(tiles, "QUERY_BLOCK", tl.constexpr(2))
        check(replace(CASES[3], max_steps=1, stops="never"), torch.float32, device, "persistent")

    @pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]], ids=str)
    def test_as_exact_as_pytorch_in_float16(self, case, device):
        check(case, torch.float16, device, "persistent")

    def test_same_bits_in_a_batch_as_alone(self, device):
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

    def test_nan_in_one_item_does_not_affect_the_others(self, device):
        batch = Case().batch(torch.float32, device)
        expected = call(batch, Case())
        batch.memory[1, 0] = float("nan")
        actual = call(batch, Case())
        assert actual.frames[1, 0].isnan().all()
        for x, y in zip(actual, expected, strict=True):
            assert torch.equal(x[::2], y[::2])

    def test_a_length_beyond_the_memory_is_clamped(self, device):
        case = Case(max_steps=1)
        batch = case.batch(torch.float32, device)
        expected = call(replace(batch, lengths=torch.full_like(batch.lengths, 7)), case)
        assert_same_bits(call(replace(batch, lengths=torch.full_like(batch.lengths, 9)), case), expected)

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
            # Weights folded for another dtype are not used.
            assert_same_bits(call(batch, Case(), folded=fold_decoder(batch.recurrent, batch.output)), expected)
        plain = perturbed(lambda: call(batch.to(torch.half), Case(), reference))
        exact = call(batch.to(torch.double), Case(), reference)
        assert expected.steps.tolist() == exact.steps.tolist()
        assert_as_exact_as(expected.frames, plain.frames, exact.frames, 2, CAPS[torch.float16])

    def test_cached_buffers_hold_no_gradients_and_no_inference_tensors(self, device):
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
