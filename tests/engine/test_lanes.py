"""Lanes: sentences of many callers decoded together, each to the bits that it gets alone."""

import copy
import threading
import time
import warnings
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from fastglow import Synthesizer
from fastglow.engine.acoustic import Acoustic
from fastglow.engine.attempts import Decoded
from fastglow.engine.lanes import Lanes, Rows, RowsDifferWarning

from .conftest import make_tacotron2

MOST = 4
# On some processors sentences are decoded one by one; then, too, their bits must be the same.
pytestmark = pytest.mark.filterwarnings("ignore::fastglow.engine.lanes.RowsDifferWarning")


def sentences(n, seed=0, longest=60):
    """Symbols, seeds and limits."""
    generator = np.random.default_rng(seed)
    texts = [generator.integers(1, 148, generator.integers(1, longest)).tolist() for _ in range(n)]
    return texts, generator.integers(-(2**63), 2**63, n).tolist(), generator.integers(1, 31, n).tolist()


def same(a, b):
    return torch.equal(a.mel, b.mel) and np.array_equal(a.alignment, b.alignment) and a.stopped == b.stopped


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def acoustic(request):
    return Acoustic(make_tacotron2(max_decoder_steps=30).to(request.param), 256 / 22050)


@pytest.fixture(scope="module")
def heart():
    return Synthesizer.from_voice("heart", "cpu", torch.float32)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_sentence_has_the_bits_that_it_has_alone(acoustic, most):
    rows = Rows(acoustic, most)
    texts, seeds, limits = sentences(9)
    alone = [rows.decode([text], [seed], [limit])[0] for text, seed, limit in zip(texts, seeds, limits, strict=True)]
    together = rows.decode(texts, seeds, limits)
    backwards = rows.decode(texts[::-1], seeds[::-1], limits[::-1])[::-1]
    for one, other, third in zip(alone, together, backwards, strict=True):
        assert same(one, other) and same(one, third)
        assert other.alignment.shape[0] == other.mel.shape[1] / acoustic.frames_per_step


def test_the_bundled_voice_has_the_bits_that_it_has_alone(heart):
    rows = Rows(heart.acoustic, 8)
    texts, seeds, _ = sentences(6, seed=1, longest=100)
    for text, seed, other in zip(texts, seeds, _by_shape(rows, texts, seeds, [40] * 6), strict=True):
        assert same(rows.decode([text], [seed], [40])[0], other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_gives_the_bits_that_it_gives_alone(dtype):
    acoustic = Synthesizer.from_voice("heart", "cuda", dtype).acoustic
    rows = Rows(acoustic, 8)
    texts, seeds, _ = sentences(8, seed=5, longest=100)
    for repetition in range(2):  # as written, and as CUDA graphs
        alone = [rows.decode([text], [seed], [40])[0] for text, seed in zip(texts, seeds, strict=True)]
        for one, other in zip(alone, _by_shape(rows, texts, seeds, [40] * 8), strict=True):
            assert same(one, other), repetition


def test_lanes_agree_with_the_ordinary_batch_but_for_rounding():
    """In float64, where rounding does not grow to anything that shows."""
    acoustic = Acoustic(make_tacotron2(max_decoder_steps=30).double(), 256 / 22050)
    texts, seeds, limits = sentences(5, seed=2)
    for one, other in zip(
        Rows(acoustic, 4).decode(texts, seeds, limits), acoustic.decode(texts, seeds, limits), strict=True
    ):
        torch.testing.assert_close(one.mel, other.mel, rtol=0, atol=1e-9)
        np.testing.assert_allclose(one.alignment, other.alignment, rtol=0, atol=1e-6)
        assert one.stopped == other.stopped


@pytest.mark.parametrize(("n", "shape"), [(1, 64), (64, 64), (65, 128), (129, 256), (256, 256), (257, 512)])
def test_a_batch_has_room_for_its_sentences(acoustic, n, shape):
    rows = Rows(acoustic, 2)
    assert rows.shape(n) == shape
    (decoded,) = rows.decode([[1 + i % 140 for i in range(n)]], [3], [5])
    assert decoded.alignment.shape[1] == n


class Rounding(Rows):
    """A processor on which batches of fewer than `least` sentences round differently, or each row does."""

    def __init__(self, acoustic, most, least, by_row=False):
        super().__init__(acoustic, most)
        self.least, self.by_row, self.decoded = least, by_row, []

    def _decode(self, batch, shape):
        self.decoded.append(len(batch))
        differs = len(batch) < self.least or (self.by_row and len(batch) > 1)
        return [
            Decoded(torch.full((80, 4), seed + differs * (i + 1) * 1e-6), np.zeros((2, len(text)), np.float32), True)
            for i, (text, seed, _) in enumerate(batch)
        ]


@pytest.mark.parametrize(("least", "expected"), [(1, [1, 2, 4, 6]), (3, [4, 6]), (6, [6])])
def test_batches_are_filled_up_to_a_number_that_rounds_alike(acoustic, least, expected):
    rows = Rounding(acoustic, 6, least)
    assert rows.counts(64) == expected
    texts, seeds, limits = [[1, 2]] * 5, [*range(5)], [9] * 5
    rows.decoded.clear()
    together = rows.decode(texts, seeds, limits)
    assert rows.decoded == [6] and [one.mel[0, 0].item() for one in together] == seeds
    rows.decoded.clear()
    for i in range(5):
        assert same(rows.decode(texts[:1], seeds[i : i + 1], limits[:1])[0], together[i])
    assert set(rows.decoded) == {expected[0]}


@pytest.mark.filterwarnings("default::fastglow.engine.lanes.RowsDifferWarning")
def test_rows_that_round_by_position_are_decoded_one_by_one(acoustic):
    rows = Rounding(acoustic, 4, 1, by_row=True)
    with pytest.warns(RowsDifferWarning, match="--max-batch 1"):
        assert rows.counts(64) == [1]
    rows.decoded.clear()
    rows.decode([[1]] * 3, [1, 2, 3], [9] * 3)
    assert rows.decoded == [1, 1, 1]


class Gate:
    """`on_batch` that notes sizes and stops the decoder until it is opened."""

    def __init__(self):
        self.sizes, self.open = [], threading.Event()

    def __call__(self, n):
        self.sizes.append(n)
        self.open.wait(30)


@pytest.fixture
def gated(acoustic):
    gate = Gate()
    lanes = Lanes(acoustic, MOST, 30.0, gate)
    yield lanes, gate
    gate.open.set()
    lanes.close()


def _submit(lanes, seat, n=1, seed=0):
    return [lanes.submit(seat, *one) for one in zip(*sentences(n, seed), strict=True)]


def _wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_what_waits_is_decoded_together(gated):
    lanes, gate = gated
    seats = [lanes.seat() for _ in range(6)]
    first = _submit(lanes, seats[0])
    # The others may still come, and are waited for.
    time.sleep(0.05)
    assert gate.sizes == []
    others = [_submit(lanes, seat, seed=i) for i, seat in enumerate(seats[1:], 1)]
    _wait_for(lambda: gate.sizes)
    assert gate.sizes == [MOST] and lanes.n_waiting == 2
    gate.open.set()
    for seat, (result,) in zip(seats, [first, *others], strict=True):
        assert result.result(30).mel.shape[0] == 80
        seat.close()
    assert gate.sizes == [4, 2]


def test_nobody_waits_for_callers_that_there_are_not(acoustic):
    gate = Gate()
    gate.open.set()
    lanes = Lanes(acoustic, MOST, 3600.0, gate)
    seat = lanes.seat()
    (result,) = _submit(lanes, seat)
    result.result(30)
    other = lanes.seat()
    (result,) = _submit(lanes, seat)
    other.close()
    result.result(30)
    lanes.close()


def test_callers_wait_no_longer_than_allowed(acoustic):
    lanes = Lanes(acoustic, MOST, 0.02)
    idle, seat = lanes.seat(), lanes.seat()
    (result,) = _submit(lanes, seat)
    result.result(30)
    idle.close()
    lanes.close()


def test_a_short_text_comes_before_the_rest_of_a_long_one(gated):
    lanes, gate = gated
    long, short = lanes.seat(), lanes.seat()
    # Of one shape, more than a batch.
    whole = _submit(lanes, long, n=3 * MOST)
    _wait_for(lambda: gate.sizes)
    (result,) = _submit(lanes, short, seed=9)
    gate.open.set()
    result.result(30)
    assert sum(not one.done() for one in whole) >= MOST
    short.close()
    for one in whole:
        one.result(30)


def test_a_long_text_does_not_wait_for_ever(gated, monkeypatch):
    lanes, gate = gated
    monkeypatch.setattr("fastglow.engine.lanes.LATER", 0.05)
    long, *short = (lanes.seat() for _ in range(1 + 3 * MOST))
    first, later = _submit(lanes, long, n=MOST), None
    _wait_for(lambda: gate.sizes)
    (later,) = _submit(lanes, long)
    time.sleep(0.1)
    others = [_submit(lanes, seat)[0] for seat in short]
    gate.open.set()
    later.result(30)
    assert sum(not one.done() for one in others) >= MOST
    assert all(one.done() for one in first)
    long.close()
    for seat, one in zip(short, others, strict=True):
        one.result(30)
        seat.close()


def test_closing_a_seat_gives_its_sentences_up(gated):
    lanes, gate = gated
    leaving, staying = lanes.seat(), lanes.seat()
    begun = _submit(lanes, staying, n=MOST)
    _wait_for(lambda: gate.sizes)
    left, kept = _submit(lanes, leaving, n=2), _submit(lanes, staying)
    leaving.close()
    assert all(one.cancelled() for one in left) and lanes.n_waiting == 1
    with pytest.raises(CancelledError):
        _submit(lanes, leaving)
    gate.open.set()
    for one in [*begun, *kept]:
        one.result(30)
    assert gate.sizes == [MOST, 1]


def test_a_sentence_that_fails_does_not_take_the_others_along(acoustic):
    class Failing(Rows):
        def decode(self, texts, seeds, limits):
            if 13 in seeds:
                raise RuntimeError("out of memory")
            return super().decode(texts, seeds, limits)

    lanes = Lanes(acoustic, MOST, 30.0)
    lanes.rows = Failing(acoustic, MOST)
    seats = [lanes.seat() for _ in range(3)]
    results = [lanes.submit(seat, [1, 2, 3], seed, 5) for seat, seed in zip(seats, (1, 13, 2), strict=True)]
    assert results[0].result(30).mel.shape == results[2].result(30).mel.shape
    with pytest.raises(RuntimeError, match="out of memory"):
        results[1].result(30)
    lanes.close()


def test_closed_lanes_finish_what_waits_and_take_no_more(acoustic):
    gate = Gate()
    lanes = Lanes(acoustic, 1, 0.0, gate)
    seat = lanes.seat()
    results = _submit(lanes, seat, n=3)
    closing = threading.Thread(target=lanes.close)
    closing.start()
    _wait_for(lambda: lanes._closed)
    with pytest.raises(CancelledError):
        _submit(lanes, seat)
    gate.open.set()
    closing.join(30)
    assert not closing.is_alive() and all(one.done() and not one.cancelled() for one in results)


def test_a_synthesizer_speaks_through_a_seat(heart):
    lanes = Lanes(heart.acoustic, 4, 0.01)
    texts = ["One two three.", "A second text. It has two sentences.", "Third."]

    def speak(i):
        view = copy.copy(heart)
        view.acoustic = seat = lanes.seat()
        with warnings.catch_warnings():
            speech = view.synthesize(texts[i], seed=i)
            streamed = np.concatenate([*view.stream(texts[i], seed=i)])
        seat.close()
        return speech.audio, streamed

    alone = [speak(i) for i in range(3)]
    together = [None] * 3
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, speak(i))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lanes.close()
    for (audio, streamed), (other, other_streamed) in zip(alone, together, strict=True):
        assert len(audio) and np.array_equal(audio, other) and np.array_equal(audio, streamed)
        assert np.array_equal(streamed, other_streamed)


def _by_shape(rows, texts, seeds, limits):
    found = {}
    for shape in {rows.shape(len(text)) for text in texts}:
        of_shape = [i for i, text in enumerate(texts) if rows.shape(len(text)) == shape]
        decoded = rows.decode(*([x[i] for i in of_shape] for x in (texts, seeds, limits)))
        found.update(zip(of_shape, decoded, strict=True))
    return [found[i] for i in range(len(texts))]
