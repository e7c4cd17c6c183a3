"""The decoder's form for CPUs against its reference in float64, with weights of every type."""

from dataclasses import replace

import pytest
import torch

from fastglow.diagnosis.rounding import RUNS, perturbed
from fastglow.kernels import backend, decode_loop, decode_pieces, pack_decoder
from fastglow.kernels.cpu import decode_loop as cpu_decode_loop
from fastglow.kernels.cpu import int8_linear, processor
from fastglow.kernels.decoder_weights import LSTMWeights

from .checks import assert_as_exact_as, assert_same_bits
from .decode_loop_cases import CAPS, CASES, MANY, Case, call, joined, reference
from .test_decode_loop import REFERENCE_CASES

DTYPES = [torch.float32, torch.bfloat16]
EVERY_CASE = dict.fromkeys([*CASES, *REFERENCE_CASES, MANY, Case((3, 4), n_prenet=(5,), stops="never")])  # each once
LONG = Case((9, 4), stops="never", max_steps=70, n_decoder_rnn=32, n_attention_rnn=16)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def check(actual, batch, exact_batch, case):
    exact = call(exact_batch, case, reference)
    plain = perturbed(lambda: call(batch, case, reference), 2 if case.max_steps > 10 else RUNS)
    assert torch.equal(actual.steps, exact.steps)
    for x, references, truth in zip(actual, plain, exact, strict=True):
        if x.is_floating_point():
            assert x.dtype == torch.float32
            assert_as_exact_as(x.to(references.dtype), references, truth, 2, CAPS[references.dtype])


def dequantised(cell: LSTMWeights, scale_dtype: torch.dtype) -> LSTMWeights:
    """As the int8 forms read it: 127 levels on each side of zero, one scale for a row of both matrices."""
    weight = torch.cat((cell.weight_ih, cell.weight_hh), dim=1).float()
    scales = (weight.abs().amax(1, keepdim=True) / 127).to(scale_dtype).float()
    weight = (weight / scales).round() * scales
    ih, hh = weight.split((cell.weight_ih.shape[1], cell.weight_hh.shape[1]), dim=1)
    return cell._replace(weight_ih=ih, weight_hh=hh)


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_exact_as_pytorch(case, dtype):
    batch = case.batch(dtype)
    before = backend.cpu_calls["decode_loop"]
    actual = call(batch, case)
    assert backend.cpu_calls["decode_loop"] == before + 1
    check(actual, batch, batch.to(torch.float64), case)


@pytest.mark.parametrize("case", [Case(), *CASES[2:5], MANY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_weights_with_inputs_of_16_bits(case, dtype):
    if not int8_linear.multiplies_integers():
        pytest.skip("needs exact products of 8-bit integers")
    check_int8(case, dtype, torch.float32, torch.float16)


@pytest.mark.parametrize("case", [Case(), *CASES[2:5], MANY], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_int8_weights_with_inputs_in_bfloat16(case, dtype, monkeypatch):
    monkeypatch.setattr(int8_linear, "multiplies_integers", lambda: False)
    check_int8(case, dtype, torch.bfloat16, torch.bfloat16)


def check_int8(case, dtype, scale_dtype, as_exact_as):
    batch = case.batch(torch.float32)
    packed = pack_decoder(batch.recurrent, batch.output, dtype, torch.int8)
    attention_rnn, decoder_rnn = (
        dequantised(cell, scale_dtype) for cell in (batch.recurrent.attention_rnn, batch.recurrent.decoder_rnn)
    )
    of_levels = replace(batch, recurrent=batch.recurrent._replace(attention_rnn=attention_rnn, decoder_rnn=decoder_rnn))
    check(call(batch, case, packed=packed), of_levels.to(as_exact_as), of_levels.to(torch.float64), case)


@pytest.mark.parametrize("lacking", ["oneDNN", "an operation", "an overload"])
def test_without_onednn(monkeypatch, lacking):
    """Plain products, of the same exactness."""
    if lacking == "oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        name = {"an operation": "_no_such.default", "an overload": "_linear_pointwise.no_such"}[lacking]
        monkeypatch.setattr(processor, "OPERATIONS", (*processor.OPERATIONS, name))
    processor.has_operations.cache_clear()
    try:
        assert not any(map(processor.packs, DTYPES))
        for dtype in DTYPES:
            batch = Case().batch(dtype)
            check(call(batch, Case()), batch, batch.to(torch.float64), Case())
    finally:
        processor.has_operations.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [1, 3, (5, 1, 64), 1000])
def test_pieces_are_the_whole_to_the_bit_wherever_the_memory_is(dtype, sizes):
    case = LONG
    batch = case.batch(dtype)
    packed = pack_decoder(batch.recurrent, batch.output, dtype)
    whole = call(batch, case, packed=packed)
    held = []
    for n in (3, 1000, 17):
        held.append(torch.empty(n))
        again = joined(call(batch, case, decode_pieces, piece_steps=sizes, packed=packed))
        assert_same_bits(again, whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_item_of_a_batch_is_as_exact_as_alone(dtype):
    case = Case((7, 1, 5, 7), stops="never", max_steps=5)
    batch = case.batch(dtype)
    together = call(batch, case)
    for item, length in enumerate(case.lengths):
        alone = call(batch.alone(item), case)
        tolerance = CAPS[dtype]
        torch.testing.assert_close(together.frames[item], alone.frames[0], atol=tolerance, rtol=0)
        torch.testing.assert_close(together.alignments[item, :, :length], alone.alignments[0], atol=tolerance, rtol=0)
        assert not together.alignments[item, :, length:].any()


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("first", [1, 2, 3, 8, 9])
def test_results_that_outgrow_their_room_have_the_same_bits(monkeypatch, first, early_stopping):
    case = Case((7, 3, 5), max_steps=8, early_stopping=early_stopping)
    batch = case.batch(torch.float32)
    expected = call(batch, case)
    assert len(set(expected.steps.tolist())) > 1
    monkeypatch.setattr(cpu_decode_loop, "FIRST_STEPS", first)
    assert_same_bits(call(batch, case), expected)
    assert_same_bits(joined(call(batch, case, decode_pieces, piece_steps=5)), expected)


def test_a_limit_for_which_there_is_no_memory():
    """The gates fire long before."""
    case = Case(stops="at once")
    batch = case.batch(torch.float32)
    assert call(batch, case).frames.shape[1] == 1
    assert_same_bits(call(batch, replace(case, max_steps=10**12)), call(batch, case))


def test_what_it_is_not_for():
    case = Case()
    batch = case.batch(torch.float32)
    before = backend.cpu_calls.total()
    with torch.enable_grad():
        assert call(batch, case).frames.dtype == torch.float32
    with backend.use_backend("reference"):
        call(batch, case)
    for dtype in (torch.float64, torch.float16):
        assert call(batch.to(dtype), case).frames.dtype == dtype
    assert backend.cpu_calls.total() == before
    assert call(batch, case, decode_loop).frames.shape[0] == 3
    assert backend.cpu_calls.total() == before + 1


@pytest.mark.parametrize(("gate", "steps"), [(float("nan"), 0), (float("inf"), 0), (-float("inf"), 4)])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.5, 1.0, 1.5])
def test_gates_that_are_not_finite_and_thresholds_that_none_or_all_exceed(gate, steps, threshold):
    case = Case(stops="never", gate_threshold=threshold)
    batch = case.batch(torch.float32)
    batch.output.gate_bias.fill_(gate)
    assert torch.equal(call(batch, case).steps, call(batch, case, reference).steps)
    if threshold == 0.5:
        assert call(batch, case).steps.tolist() == [steps] * 3
