"""Calls of the decoder's form for CPUs: modes, threads, pieces, and arguments that are out of the ordinary."""

import gc
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from fastglow.diagnosis.rounding import perturbed
from fastglow.kernels import backend, decode_pieces, pack_decoder

from .checks import assert_as_exact_as, assert_same_bits
from .decode_loop_cases import CAPS, Case, call, joined, reference
from .test_decode_loop_pieces import ENDLESS, assert_pieces_of, calls, check_pieces, in_pieces

TYPES = [(torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.int8)]
EVERY_TYPE = pytest.mark.parametrize(("dtype", "weights"), TYPES, ids=["float32", "bfloat16", "int8"])
CASE = Case((5, 2, 4), stops="never", max_steps=7)


@pytest.fixture(autouse=True)
def _on_packed_weights():
    """In inference, and it fails if nothing ran in the form for CPUs."""
    before = backend.cpu_calls["decode_loop"]
    with torch.no_grad():
        yield
    assert backend.cpu_calls["decode_loop"] > before


def packed(batch, dtype, weights):
    return pack_decoder(batch.recurrent, batch.output, dtype, weights)


@given(calls([torch.float32, torch.bfloat16], 9))
def test_any_pieces_are_the_whole(arguments):
    batch, case, sizes = arguments
    whole = call(batch, case)
    check_pieces(batch, case, sizes, decode_pieces, whole)


@EVERY_TYPE
def test_every_item_has_its_own_end(dtype, weights):
    """`early_stopping` off: the rest of the steps is zero, in every piece."""
    case = Case((7, 3, 5), early_stopping=False, max_steps=9)
    batch = case.batch(torch.float32)
    whole = call(batch, case, packed=packed(batch, dtype, weights))
    assert len(set(whole.steps.tolist())) > 1
    for item, end in enumerate(whole.steps.tolist()):
        assert whole.frames[item, : end + 1].abs().amax(1).all() and not whole.frames[item, end + 1 :].any()
        assert not whole.alignments[item, end + 1 :].any()
    pieces = list(in_pieces(batch, case, [1, 4], packed=packed(batch, dtype, weights)))
    assert_pieces_of(pieces, whole, case.max_steps)


def test_autocast_is_as_exact_as_the_reference_under_it():
    batch = CASE.batch(torch.float32)
    exact = call(batch.to(torch.float64), CASE, reference)
    with torch.autocast("cpu", torch.bfloat16):
        plain = perturbed(lambda: call(batch, CASE, reference))
        found = call(batch, CASE)
        given_weights = call(batch, CASE, packed=lambda dtype: packed(batch, dtype, None))
    assert_same_bits(given_weights, found)
    assert_same_bits(found, call(batch, CASE, packed=packed(batch, torch.bfloat16, None)))
    assert_as_exact_as(found.frames.bfloat16(), plain.frames.bfloat16(), exact.frames, 2, CAPS[torch.bfloat16])


@EVERY_TYPE
def test_the_callers_modes_are_its_own_between_pieces(dtype, weights):
    batch = CASE.batch(torch.float32)
    given = packed(batch, dtype, weights)
    expected = call(batch, CASE, packed=given)
    with torch.inference_mode():
        pieces = in_pieces(batch, CASE, 1, packed=given)
        found = [next(pieces)]
        assert torch.is_inference_mode_enabled()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        found.append(next(pieces))
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    found += pieces
    assert_same_bits(joined(found), expected)
    assert not any(piece.frames.requires_grad or piece.frames.is_inference() for piece in found)


@EVERY_TYPE
def test_weights_and_inputs_of_inference_mode(dtype, weights):
    batch = CASE.batch(torch.float32)
    expected = call(batch, CASE, packed=packed(batch, dtype, weights))
    with torch.inference_mode():
        inside = batch.to(torch.float64).to(torch.float32)
        assert inside.memory.is_inference()
        given = packed(inside, dtype, weights)
        assert_same_bits(call(inside, CASE, packed=given), expected)
    assert_same_bits(call(inside, CASE, packed=given), expected)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_other_defaults_of_dtype_and_device(default):
    batch = CASE.batch(torch.float32)
    expected = call(batch, CASE)
    if default == "meta":
        with torch.device(default):
            found = call(batch, CASE)
    else:
        torch.set_default_dtype(default)
        try:
            found = call(batch, CASE)
        finally:
            torch.set_default_dtype(torch.float32)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("gate", [-math.inf, -1e38])
def test_a_gate_that_cannot_fire_changes_nothing_else(gate):
    batch = CASE.batch(torch.float32)
    expected = call(batch, CASE)
    batch.output.gate_bias.fill_(gate)
    assert_same_bits(call(batch, CASE), expected)


@EVERY_TYPE
def test_nan_in_one_item_ends_it_and_leaves_the_others(dtype, weights):
    batch = CASE.batch(torch.float32)
    given = packed(batch, dtype, weights)
    expected = call(batch, CASE, packed=given)
    batch.memory[1] = math.nan
    found = call(batch, CASE, packed=given)
    assert found.steps.tolist() == [7, 0, 7]
    assert found.frames[1, 0].isnan().all() and not found.frames[1, 1:].any()
    for x, same in ((found.frames, expected.frames), (found.alignments, expected.alignments)):
        assert_same_bits(x[[0, 2]], same[[0, 2]])


def test_the_padding_of_the_processed_memory_is_not_read():
    batch = CASE.batch(torch.float32)
    expected = call(batch, CASE)
    batch.processed_memory[1, 2:] = math.nan
    assert_same_bits(call(batch, CASE), expected)


@EVERY_TYPE
def test_other_calls_while_pieces_are_suspended(dtype, weights):
    case = replace(ENDLESS, max_steps=4)
    batch = case.batch(torch.float32)
    given = packed(batch, dtype, weights)
    batches = [batch.items(order) for order in ([0, 1], [1, 0], [1, 1])]
    expected = [call(one, case, packed=given) for one in batches]
    runs = [in_pieces(one, case, 1, packed=given) for one in batches[:2]]
    found = [[], []]
    for _ in range(case.max_steps):
        for pieces, run in zip(found, runs, strict=True):
            pieces.append(next(run))
            assert_same_bits(call(batches[2], case, packed=given), expected[2])
    assert [list(run) for run in runs] == [[], []]
    for pieces, one in zip(found, expected, strict=False):
        assert_same_bits(joined(pieces), one)


def test_a_generator_that_is_given_up_holds_nothing():
    batch = CASE.batch(torch.float32)
    memory = weakref.ref(batch.memory)
    pieces = in_pieces(batch, CASE, 2)
    first = next(pieces)
    kept = first.frames.clone()
    del batch
    gc.collect()
    assert memory() is not None
    pieces.close()
    gc.collect()
    assert memory() is None
    assert list(pieces) == []
    assert_same_bits(first.frames, kept)


@EVERY_TYPE
def test_threads_at_once(dtype, weights):
    """Each decodes wholes and pieces with the same weights, and gets the bits that a call alone has."""
    batch = CASE.batch(torch.float32)
    given = packed(batch, dtype, weights)
    batches = [batch.items(order) for order in ([0, 1], [1, 0], [2], [2, 2, 0])]
    expected = [call(one, CASE, packed=given) for one in batches]
    together = threading.Barrier(len(batches))

    def decode(i):
        together.wait(60)
        found, held = [], []
        with torch.no_grad():
            for n in (1, 3, 1000):
                held.append(torch.empty(n))
                run = in_pieces(batches[i], CASE, n, packed=given)
                first = next(run)
                found += [call(batches[i], CASE, packed=given), joined([first, *run])]
        return found

    with ThreadPoolExecutor(len(batches)) as pool:
        for results, one in zip(pool.map(decode, range(len(batches))), expected, strict=True):
            for result in results:
                assert_same_bits(result, one)
