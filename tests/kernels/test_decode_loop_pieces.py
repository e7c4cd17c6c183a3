"""The decode loop in pieces: the bits of the whole, whatever the sizes and whoever else decodes meanwhile."""

import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastglow.kernels import DecodePiece, DecodeResult, backend, decode_pieces, fold_decoder
from fastglow.kernels.decode_loop import decoding as decoding_module
from fastglow.kernels.decode_loop.decoding import Decoding
from fastglow.kernels.reference.decode_loop import decode_pieces as reference_pieces

from .checks import assert_kernels_refuse, assert_refused, assert_same_bits
from .decode_loop_cases import Batch, Case, call, joined, reference, short_graphs  # noqa: F401

ENDLESS = Case((4, 2), n_decoder_rnn=8, max_steps=3, stops="never")


def in_pieces(batch: Batch, case: Case, sizes: int | Iterable[int], function=decode_pieces, **options):
    return call(batch, case, function, piece_steps=sizes, **options)


def assert_pieces_of(pieces: list[DecodePiece], whole: DecodeResult, max_steps: int) -> None:
    assert_same_bits(joined(pieces), whole)
    n = 0
    for piece in pieces:
        n += piece.frames.shape[1]
        assert torch.equal(piece.steps, whole.steps.clamp(max=n))
        assert piece.running == (n < max_steps and bool((whole.steps >= n).any()))
    assert not pieces[-1].running


@st.composite
def calls(draw, dtypes: list[torch.dtype], most_steps: int) -> tuple[Batch, Case, list[int]]:
    case = Case(
        tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))),
        n_frame=draw(st.integers(1, 4)),
        n_prenet=(3, 5),
        n_memory=6,
        n_attention=4,
        n_attention_rnn=5,
        n_decoder_rnn=7,
        filters=2,
        taps=3,
        p_prenet_dropout=draw(st.sampled_from([0.0, 0.5])),
        gate_threshold=draw(st.floats(0.3, 0.99)),
        max_steps=draw(st.integers(1, most_steps)),
        early_stopping=draw(st.booleans()),
        stops=draw(st.sampled_from(["at random", "never", "at once"])),
    )
    torch.manual_seed(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return case.batch(draw(st.sampled_from(dtypes))), case, sizes


def check_pieces(batch: Batch, case: Case, sizes: list[int], function, whole: DecodeResult) -> None:
    pieces = list(in_pieces(batch, case, sizes, function))
    assert_pieces_of(pieces, whole, case.max_steps)
    asked = itertools.chain(sizes, itertools.repeat(sizes[-1]))
    *firsts, last = [piece.frames.shape[1] for piece in pieces]
    assert firsts == list(itertools.islice(asked, len(firsts)))
    assert 1 <= last <= next(asked)


class Arguments(tuple):
    """Hypothesis prints them when a test fails."""

    def __repr__(self) -> str:
        batch, case, sizes = self
        return f"{case}, {batch.memory.dtype}, pieces of {sizes}"


@given(calls([torch.float32, torch.float64], 9).map(Arguments))
def test_pieces_of_the_reference_are_the_whole(arguments):
    batch, case, sizes = arguments
    check_pieces(batch, case, sizes, reference_pieces, call(batch, case, reference))
    with backend.use_backend("reference"):
        check_pieces(batch, case, sizes, decode_pieces, call(batch, case, reference))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
@settings(max_examples=8)
@given(calls([torch.float32, torch.float16], 4).map(Arguments))
def test_pieces_of_the_kernels_are_the_whole(arguments):
    batch, case, sizes = arguments
    with backend.use_backend("triton"):
        check_pieces(batch, case, sizes, decode_pieces, call(batch, case, method="persistent"))


def test_pieces_longer_than_a_block_of_noise():
    case = Case((3,), stops="never", max_steps=140)
    batch = case.batch(torch.float32)
    assert_same_bits(joined(in_pieces(batch, case, [50, 3, 31], reference_pieces)), call(batch, case, reference))


def test_no_items(device):
    batch = Case().batch(torch.float32, device).items([])
    for name in ("triton", "reference"):
        with backend.use_backend(name):
            (piece,) = in_pieces(batch, Case(), 2)
        assert piece.frames.shape == (0, 1, 6)
        assert piece.alignments.shape == (0, 1, 7)
        assert not piece.running


@pytest.mark.parametrize("function", [decode_pieces, reference_pieces], ids=["op", "reference"])
class TestSizes:
    def test_they_are_read_when_a_piece_is_asked_for(self, function):
        asked = []

        def sizes():
            for size in (2, 1, 3):
                asked.append(size)
                yield size

        pieces = in_pieces(ENDLESS.batch(torch.float32), ENDLESS, sizes(), function)
        assert asked == []
        for n, piece in enumerate(pieces, 1):
            assert asked == [2, 1][:n]
            assert piece.frames.shape[1] == asked[-1]
        assert len(asked) == 2

    @pytest.mark.parametrize(
        "sizes, good, message",
        [
            (0, 0, "^piece_steps=0 must be at least 1$"),
            ([2, -1], 1, "^piece_steps=-1 must be at least 1$"),
            ([], 0, "^piece_steps is empty, must have at least one size$"),
        ],
    )
    def test_bad_sizes(self, sizes, good, message, function):
        pieces = in_pieces(ENDLESS.batch(torch.float32), ENDLESS, sizes, function)
        for _ in range(good):
            next(pieces)
        assert_refused(message, next, pieces)


def test_wrong_arguments_are_refused_at_the_call():
    batch = ENDLESS.batch(torch.float32)
    assert_refused("max_steps=0 must be at least 1", in_pieces, batch, ENDLESS, 1, max_steps=0)
    message = "method='persistent' must be 'steps', 'graph' or None"
    assert_refused(message, in_pieces, batch, ENDLESS, 1, method="persistent")
    if not torch.cuda.is_available():
        message = "'graph' does not support .* cpu has no CUDA"
        assert_kernels_refuse(message, in_pieces, batch, ENDLESS, 1, method="graph")
    assert_kernels_refuse("float64 is not among", in_pieces, ENDLESS.batch(torch.float64), ENDLESS, 1)


class HostReads(TorchDispatchMode):
    """Counts elements that the host reads one by one."""

    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("triton_backend", "short_graphs")
class TestKernels:
    def test_replays_are_not_divided(self, device, monkeypatch):
        """Launches stand in for the replays of a CUDA graph of two frames."""
        op = sys.modules["fastglow.kernels.decode_loop"]
        replays = []

        def graph(decoding: Decoding) -> SimpleNamespace:
            return SimpleNamespace(replay=lambda: (replays.append(int(decoding.t)), decoding.run_frames(2)))

        case = replace(ENDLESS, max_steps=5)
        batch = case.batch(torch.float32, device)
        with monkeypatch.context() as patch:
            patch.setattr(op, "_pick_method", lambda *_: "graph")
            patch.setattr(Decoding, "graph", graph)
            pieces = list(in_pieces(batch, case, [1, 3]))
        assert [piece.frames.shape[1] for piece in pieces] == [2, 3]
        assert replays == [0, 2, 4]
        assert_same_bits(joined(pieces), call(batch, case))

    def test_the_host_waits_once_for_each_piece(self, device, monkeypatch):
        lists = []
        tolist = Tensor.tolist
        monkeypatch.setattr(Tensor, "tolist", lambda x: (lists.append(x), tolist(x))[1])
        batch = ENDLESS.batch(torch.float32, device)
        lists.clear()
        with HostReads() as reads:
            for n, _ in enumerate(in_pieces(batch, ENDLESS, 2, method="steps"), 1):
                assert len(lists) == n
        assert n == 2
        assert reads.n == 0

    def test_the_callers_modes_are_its_own_between_pieces(self, device):
        batch = ENDLESS.batch(torch.float32, device)
        expected = call(batch, ENDLESS)
        with torch.inference_mode():
            pieces = in_pieces(batch, ENDLESS, 1)
            found = [next(pieces)]
            assert torch.is_inference_mode_enabled()
        with torch.autocast(device, torch.bfloat16):
            found.append(next(pieces))
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled(device)
        found += pieces
        assert_same_bits(joined(found), expected)
        assert not any(piece.frames.requires_grad or piece.frames.is_inference() for piece in found)

    def test_other_calls_while_pieces_are_suspended(self, device):
        """Of the same sizes, in the same thread, with the same weights."""
        case = replace(ENDLESS, max_steps=2)
        batch = case.batch(torch.float32, device)
        batches = [batch.items(order) for order in ([0, 1], [1, 0], [1, 1])]
        expected = [call(one, case) for one in batches]
        folded = fold_decoder(batch.recurrent, batch.output)
        runs = [in_pieces(one, case, 1, folded=folded) for one in batches[:2]]
        found: list[list[DecodePiece]] = [[], []]
        for _ in range(case.max_steps):
            for pieces, run in zip(found, runs, strict=True):
                pieces.append(next(run))
                assert_same_bits(call(batches[2], case, folded=folded), expected[2])
        for pieces, run, one in zip(found, runs, expected, strict=False):
            assert list(run) == []
            assert_same_bits(joined(pieces), one)
        assert len(folded.idle_decodings) == 3

    def test_a_generator_that_is_given_up_gives_its_buffers_back(self, device):
        batch = ENDLESS.batch(torch.float32, device)
        folded = fold_decoder(batch.recurrent, batch.output)
        in_pieces(batch, ENDLESS, 1, folded=folded).close()
        assert not folded.idle_decodings  # it had not begun

        def interrupt(run: list) -> None:
            with pytest.raises(KeyboardInterrupt):
                run[0].throw(KeyboardInterrupt)

        for give_up in (lambda run: run[0].close(), list.clear, interrupt, lambda run: run.append(run)):
            run = [in_pieces(batch, ENDLESS, 1, folded=folded)]
            first = next(run[0])
            assert not folded.idle_decodings
            give_up(run)
            del run
            gc.collect()
            (decoding,) = folded.idle_decodings
        kept = first.frames.clone()
        again = joined(in_pieces(batch, ENDLESS, [1, 2], folded=folded))
        assert_same_bits(again, call(batch, ENDLESS))
        assert_same_bits(first.frames, kept)
        assert list(folded.idle_decodings) == [decoding]

    def test_nothing_is_kept_once_weights_and_generator_are_gone(self, device):
        batch = ENDLESS.batch(torch.float32, device)
        folded = fold_decoder(batch.recurrent, batch.output)
        pieces = in_pieces(batch, ENDLESS, 1, folded=folded)
        next(pieces)
        pieces.close()
        (decoding,) = map(weakref.ref, folded.idle_decodings)
        del folded, pieces
        gc.collect()
        assert decoding() is None

    def test_idle_buffers_are_bounded(self, device, monkeypatch):
        monkeypatch.setattr(decoding_module, "MAX_DECODINGS", 2)
        batch = ENDLESS.batch(torch.float32, device)
        folded = fold_decoder(batch.recurrent, batch.output)
        runs = [in_pieces(batch, ENDLESS, 1, folded=folded) for _ in range(4)]
        firsts = [next(run) for run in runs]
        for run in runs:
            run.close()
        assert len(folded.idle_decodings) == 2
        for first in firsts[1:]:
            assert_same_bits(first, firsts[0])

    def test_buffers_may_come_back_while_the_cache_is_searched(self, device):
        """By the garbage collection of an abandoned generator, in the thread that searches."""

        class Collecting(float):
            def __eq__(self, other) -> bool:
                gc.collect()
                return float(self) == other

            __hash__ = float.__hash__

        batch = ENDLESS.batch(torch.float32, device)
        folded = fold_decoder(batch.recurrent, batch.output)
        taken = []

        def take(p: float) -> None:
            with decoding_module.decoding_of(folded, 2, 4, 3, p, 0.5) as decoding:
                taken.append(decoding)

        abandoned = [in_pieces(batch, ENDLESS, 1, folded=folded)]
        next(abandoned[0])
        take(0.5)
        abandoned.append(abandoned)
        gc.disable()
        try:
            del abandoned
            searching = threading.Thread(target=take, args=(Collecting(0.5),), daemon=True)
            searching.start()
            searching.join(60)
        finally:
            gc.enable()
        assert not searching.is_alive()
        assert taken[1] is taken[0]
        assert len(folded.idle_decodings) == 2

    def test_threads_at_once(self, device, monkeypatch):
        """Each decodes wholes and pieces, all with the same weights and most with the same sizes."""
        launch, one_at_a_time = decoding_module.launch, threading.Lock()

        def launch_alone(*args, **options) -> None:
            with one_at_a_time:  # Triton's interpreter keeps a program's index in a global variable
                launch(*args, **options)

        monkeypatch.setattr(decoding_module, "launch", launch_alone)
        monkeypatch.setattr(decoding_module, "MAX_DECODINGS", 3)
        case = replace(ENDLESS, max_steps=2)
        batch = case.batch(torch.float32, device)
        batches = [batch.items(order) for order in ([0, 1], [1, 0], [1, 1], [0])]
        expected = [call(one, case) for one in batches]
        folded = fold_decoder(batch.recurrent, batch.output)
        together = threading.Barrier(len(batches))

        def decode(i: int) -> list[DecodeResult]:
            with backend.use_backend("triton"):  # it is the thread's
                together.wait(60)
                run = in_pieces(batches[i], case, 1, folded=folded)
                first = next(run)
                whole = call(batches[i], case, method="steps", folded=folded)
                return [whole, joined([first, *run])]

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(len(batches)) as pool:
                found = list(pool.map(decode, range(len(batches))))
        finally:
            sys.setswitchinterval(interval)
        for results, one in zip(found, expected, strict=True):
            for result in results:
                assert_same_bits(result, one)
        assert len(folded.idle_decodings) == 3
