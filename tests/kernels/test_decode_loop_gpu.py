"""The decode loop on a GPU: full sizes, streams, threads, CUDA graphs and grid barriers."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from fastglow.diagnosis.rounding import perturbed
from fastglow.errors import FastglowError
from fastglow.kernels import DecodeResult, decode_pieces, fold_decoder
from fastglow.kernels.decode_loop import METHODS, PERSISTENT_ITEMS
from fastglow.kernels.decode_loop import decoding as decoding_module

from .checks import assert_as_exact_as, assert_same_bits, host_syncs
from .decode_loop_cases import CAPS, CASES, MANY, Case, call, check, joined, new_decoding, reference

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

PUBLISHED = Case(
    (93,), n_frame=80, n_prenet=(256, 256), n_memory=512, n_attention=128, n_attention_rnn=1024, n_decoder_rnn=1024,
    filters=32, taps=31, max_steps=20, margin=0.0,
)  # fmt: skip
CAPS_TF32 = 1e-2


def published(batch_size: int, **changed) -> Case:
    """Texts of 93 symbols and fewer, down to 1."""
    return replace(PUBLISHED, lengths=tuple(torch.linspace(93, 1, batch_size).int().tolist()), **changed)


def methods(n_items: int) -> tuple[str, ...]:
    """Those that decode so many items."""
    return METHODS if n_items <= PERSISTENT_ITEMS else METHODS[:-1]


@pytest.mark.parametrize("dtype", CAPS, ids=str)
@pytest.mark.parametrize("case", [*CASES, MANY], ids=str)
def test_as_exact_as_pytorch(dtype, case):
    if case.stops == "apart" and dtype == torch.bfloat16:
        case = replace(case, stops="never")  # bfloat16 errors exceed any margin between logits
    check(case, dtype, "cuda", *methods(len(case.lengths)))


@pytest.mark.parametrize("dtype", CAPS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 5, 8, 40])
def test_published_sizes(dtype, batch_size):
    check(published(batch_size, stops="never"), dtype, "cuda", *methods(batch_size))


def test_published_sizes_in_tf32(allow_tf32):
    case = published(5, stops="never")
    batch = case.batch(torch.float32, "cuda")
    folded = fold_decoder(batch.recurrent, batch.output)
    exactly = call(batch, case, method="graph", folded=folded)
    allow_tf32()
    actual = call(batch, case, method="graph", folded=folded)
    for method in METHODS:
        assert_same_bits(call(batch, case, method=method), actual)
    assert not torch.equal(actual.frames, exactly.frames)  # not the graph recorded before
    exact, plain = call(batch.to(torch.float64), case, reference), perturbed(lambda: call(batch, case, reference))
    assert_as_exact_as(actual.frames, plain.frames, exact.frames, 2, CAPS_TF32)


def test_query_with_several_blocks_of_partial_sums():
    check(published(2, n_attention_rnn=1040, stops="never"), torch.float16, "cuda", *METHODS)


@pytest.mark.parametrize("dtype", CAPS, ids=str)
@pytest.mark.parametrize("batch_size", [5, 8, 40])
def test_items_of_different_lengths_get_the_same_bits_as_alone(dtype, batch_size):
    case = published(batch_size, max_steps=60)
    batch = case.batch(dtype, "cuda")
    folded = fold_decoder(batch.recurrent, batch.output)
    together = call(batch, case, method="steps", folded=folded)
    assert len(set(together.steps.tolist())) > 1
    for method in methods(batch_size)[1:]:
        assert_same_bits(call(batch, case, method=method, folded=folded), together)
    for item in {0, 1, batch_size // 2, batch_size - 1}:
        alone = call(batch.alone(item), case, folded=folded)
        n, T = alone.alignments.shape[1:]
        assert torch.equal(together.steps[item], alone.steps[0])
        assert torch.equal(together.frames[item, :n], alone.frames[0])
        assert torch.equal(together.alignments[item, :n, :T], alone.alignments[0])


def test_two_thousand_frames():
    """The methods do not drift apart, and the attention weights still add up to 1."""
    case = published(2, max_steps=2000, stops="never")
    batch = case.batch(torch.float16, "cuda")
    result = call(batch, case, method="persistent")
    assert result.steps.tolist() == [2000, 2000]
    assert result.frames.isfinite().all()
    assert (result.alignments.float().sum(dim=2) - 1).abs().max() < 2e-3
    for method in ("graph", "steps"):
        assert_same_bits(call(batch, case, method=method), result)


@pytest.mark.parametrize("method", ["graph", "persistent"])
def test_sentences_one_after_another(method):
    """The same weights, so the same buffers and the same graph."""
    first, second = published(5), replace(published(6), lengths=(100, 3, 0, 77, 65, 12))
    batches = [case.batch(torch.float16, "cuda") for case in (first, second)]
    weights = batches[0].recurrent, batches[0].output
    batches[1] = replace(batches[1], recurrent=weights[0], output=weights[1])
    expected = [call(batch, first, method="steps") for batch in batches]
    folded = fold_decoder(*weights)
    for i in (0, 1, 0, 1):
        assert_same_bits(call(batches[i], first, method=method, folded=folded), expected[i])
    assert len(folded.idle_decodings) == 1


def test_changed_weights_are_folded_and_recorded_again():
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


def test_a_lost_program_is_an_error_and_not_a_hang(monkeypatch):
    case = published(2)
    batch = case.batch(torch.float16, "cuda")
    decoding = new_decoding(case, batch)
    decoding.barrier.fill_(-1)  # so one arrival is missing
    monkeypatch.setattr(decoding_module, "MAX_POLLS", 1 << 12)
    n_programs = torch.cuda.get_device_properties("cuda").multi_processor_count
    decoding.run_loop(n_programs, launch_cooperative_grid=True)
    with pytest.raises(FastglowError, match="did not arrive at a barrier.*pass method='graph'"):
        decoding.result(2, 93, True)
    assert_same_bits(call(batch, case, method="persistent"), call(batch, case, method="steps"))


@pytest.mark.parametrize("method", ["graph", "persistent"])
def test_threads_with_separate_streams_share_weights(method):
    """Some share a graph, some record theirs at the same time."""
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


@pytest.mark.parametrize("batch_size", [1, 5, 40])
@pytest.mark.parametrize("sizes", [1, [5, 40], 100], ids=str)
def test_pieces_are_the_whole_and_cost_one_sync_each(batch_size, sizes):
    case = published(batch_size, max_steps=60)
    batch = case.batch(torch.float16, "cuda")
    folded = fold_decoder(batch.recurrent, batch.output)
    whole = call(batch, case, folded=folded)
    for method in (None, "steps"):
        next(call(batch, case, decode_pieces, piece_steps=1, method=method, folded=folded))  # records the graph
        torch.cuda.synchronize()
        with host_syncs("warn") as found:
            pieces = list(call(batch, case, decode_pieces, piece_steps=sizes, method=method, folded=folded))
        assert len(found) == len(pieces)
        assert_same_bits(joined(pieces), whole)
        if method is None:
            assert all(piece.frames.shape[1] % 16 == 0 for piece in pieces[:-1])


def test_pieces_on_changing_streams_between_other_calls():
    """Two generators and whole calls of the same sizes, each piece on another stream."""
    case = published(3, max_steps=100, stops="never")
    batch = case.batch(torch.float16, "cuda")
    batches = [batch.items(order) for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0])]
    expected = [call(one, case, method="steps") for one in batches]
    folded = fold_decoder(batch.recurrent, batch.output)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    runs = [call(one, case, decode_pieces, piece_steps=16, folded=folded) for one in batches[:2]]
    found, others = [[], []], []
    for i in range(7):
        for j, run in enumerate(runs):
            with torch.cuda.stream(streams[(i + j) % 3]):
                found[j].append(next(run))
        with torch.cuda.stream(streams[(i + 2) % 3]):
            others.append(call(batches[2], case, method="graph", folded=folded))
    torch.cuda.synchronize()
    for pieces, one in zip(found, expected, strict=False):
        assert_same_bits(joined(pieces), one)
    for other in others:
        assert_same_bits(other, expected[2])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("method", METHODS)
def test_gpu_other_than_the_current_one(method):
    case = published(2)
    results = []
    for gpu in ("cuda:0", "cuda:1"):
        torch.manual_seed(0)
        results.append(call(case.batch(torch.float32, gpu), case, method=method).frames)
    assert results[1].device == torch.device("cuda:1")
    torch.testing.assert_close(results[1].to("cuda:0"), results[0], atol=1e-4, rtol=0)
