"""Tacotron 2's mel as a stream: joined it is the result of `infer`, with bounded work and memory."""

import gc
import itertools
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastglow import Tacotron2
from fastglow.errors import FastglowError
from fastglow.kernels import backend
from fastglow.models.tacotron2 import DecoderStepLimitWarning
from fastglow.models.tacotron2_postnet import receptive_field

from .tiny_tacotron2 import LENGTHS, SEEDS, TEXT, build, build_stopping

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def joined(pieces) -> tuple[Tensor, Tensor, Tensor]:
    """As the result of `infer`."""
    pieces = list(pieces)
    assert [piece.finished for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    mel, alignments = torch.cat([p.mel for p in pieces], dim=2), torch.cat([p.alignments for p in pieces], dim=1)
    return mel, pieces[-1].lengths, alignments


def with_warnings(call) -> tuple:
    """(result, texts of the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert all(one.category is DecoderStepLimitWarning and one.filename == __file__ for one in caught)
    return result, [str(one.message) for one in caught]


@dataclass(frozen=True)
class Stream:
    """A model and a call."""

    r: int
    convolutions: int
    kernel_size: int
    gate_threshold: float
    early_stopping: bool
    dtype: torch.dtype
    lengths: tuple[int, ...]
    max_steps: tuple[int, ...] | None
    piece_frames: int | tuple[int, ...]
    seed: int

    def model(self, **config) -> Tacotron2:
        torch.manual_seed(self.seed)
        return build(
            n_frames_per_step=self.r,
            postnet_n_convolutions=self.convolutions,
            postnet_kernel_size=self.kernel_size,
            gate_threshold=self.gate_threshold,
            decoder_no_early_stopping=not self.early_stopping,
            **config,
        ).to(self.dtype)

    def check(self, model: Tacotron2) -> None:
        text = torch.randint(0, 11, (len(self.lengths), max(self.lengths)))
        options = {"seed": self.seed, "max_steps": self.max_steps}
        arguments = text, torch.tensor(self.lengths)
        (mel, lengths, alignments), warned = with_warnings(lambda: model.infer(*arguments, **options))
        pieces, same = with_warnings(
            lambda: list(model.infer_pieces(*arguments, piece_frames=self.piece_frames, **options))
        )
        assert same == warned
        streamed, its_lengths, its_alignments = joined(pieces)
        torch.testing.assert_close(streamed, mel, atol=TOLERANCE[self.dtype], rtol=0)
        assert torch.equal(its_lengths, lengths)
        assert its_lengths.dtype == torch.int32
        assert torch.equal(its_alignments, alignments)
        for item, end in enumerate(lengths.tolist()):
            assert not streamed[item, :, end + self.r :].any()
        n, n_steps, sizes = 0, 0, self.piece_frames
        sizes = itertools.chain((sizes,) if isinstance(sizes, int) else sizes, itertools.repeat(1))
        for piece in pieces:
            n += piece.mel.shape[2]
            n_steps += piece.alignments.shape[1]
            assert torch.equal(piece.lengths, lengths.clamp(max=n))
            if not piece.finished:
                assert piece.mel.shape[2] >= next(sizes)
                assert n_steps * self.r == n + self.convolutions * (self.kernel_size // 2)


def streams(most_steps: int, dtypes: Sequence[torch.dtype]) -> st.SearchStrategy[Stream]:
    return st.integers(1, 3).flatmap(
        lambda batch_size: st.builds(
            Stream,
            r=st.integers(1, 3),
            convolutions=st.integers(1, 3),
            kernel_size=st.sampled_from([1, 3, 5]),
            gate_threshold=st.one_of(st.floats(0.3, 0.9), st.just(1.0)),
            early_stopping=st.sampled_from([True, True, False]),
            dtype=st.sampled_from(dtypes),
            lengths=st.tuples(*[st.integers(1, 7)] * batch_size),
            max_steps=st.none() | st.tuples(*[st.integers(1, most_steps)] * batch_size),
            piece_frames=st.integers(1, 9) | st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
            seed=st.integers(0, 2**31),
        )
    )


@given(streams(24, list(TOLERANCE)))
def test_streamed_as_whole(stream):
    stream.check(stream.model(max_decoder_steps=24))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
@settings(max_examples=5)
@given(streams(4, [torch.float32]))
def test_streamed_as_whole_on_the_kernels(stream):
    before = backend.launches["decode_loop"]
    with backend.use_backend("triton"):
        stream.check(stream.model(max_decoder_steps=4))
    assert backend.launches["decode_loop"] > before


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_streamed_as_whole_on_a_gpu(r):
    """On graphs, whose replays end past the items' limits."""
    model = build(n_frames_per_step=r, gate_threshold=1.0, max_decoder_steps=70).cuda()
    arguments, options = (TEXT.cuda(), LENGTHS.cuda()), {"seed": SEEDS, "max_steps": [40, 3, 21, 37]}
    mel, lengths, alignments = model.infer(*arguments, **options)
    streamed, its_lengths, its_alignments = joined(model.infer_pieces(*arguments, piece_frames=[5, 20], **options))
    assert mel.shape[2] == 40 * r
    torch.testing.assert_close(streamed, mel, atol=1e-4, rtol=0)
    assert torch.equal(its_lengths, lengths)
    assert torch.equal(its_alignments, alignments)


def test_the_gate_ends_a_stream(r):
    """With items that end on different steps."""
    model = build_stopping(SEEDS, n_frames_per_step=r)
    mel, lengths, alignments = model.infer(TEXT, LENGTHS, seed=SEEDS)
    assert len(set(lengths.tolist())) > 1
    found = joined(model.infer_pieces(TEXT, LENGTHS, seed=SEEDS, piece_frames=1))
    torch.testing.assert_close(found, (mel, lengths, alignments), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_the_window_of_the_postnet_does_not_grow():
    """And a piece is there before the decoder goes on."""
    model = build(gate_threshold=1.0, max_decoder_steps=200)
    context, widths, frames = receptive_field(model.postnet), [], 0
    model.postnet.register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[2]))
    for piece in model.infer_pieces(TEXT, LENGTHS, seed=0, piece_frames=4):
        frames += piece.mel.shape[2]
        assert piece.finished or piece.mel.shape[2] == 4
        assert widths[-1] <= 4 + 3 * context
    assert frames == 200
    assert context == 3
    assert len(widths) == -(-(200 - context) // 4)


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_the_postnet_sees_as_far_as_its_receptive_field():
    """A frame changes the residual there and not beyond."""
    for n, kernel_size in ((1, 1), (1, 5), (3, 3), (2, 7)):
        postnet = build(postnet_n_convolutions=n, postnet_kernel_size=kernel_size).double().postnet
        mel = torch.randn(1, 5, 41, dtype=torch.float64)
        changed = mel.clone()
        changed[:, :, 20] += 1
        with torch.no_grad():
            differs = (postnet(changed) != postnet(mel)).any(dim=1)[0].nonzero().flatten()
        far = receptive_field(postnet)
        assert (int(differs.min()), int(differs.max())) == (20 - far, 20 + far)


def test_the_warning_comes_before_the_last_piece():
    model = build(gate_threshold=1.0)
    pieces = model.infer_pieces(TEXT, LENGTHS, seed=0, piece_frames=6)
    assert not next(pieces).finished
    assert not next(pieces).finished
    with pytest.warns(DecoderStepLimitWarning, match=r"item\(s\) \[0, 1, 2, 3\] did not") as caught:
        assert next(pieces).finished
    assert [one.filename for one in caught] == [__file__]
    assert list(pieces) == []


def test_bad_input_is_refused_at_the_call():
    model = build()
    for options, message in (
        ({"seed": [1, 2]}, "2 seeds for 4 items"),
        ({"max_steps": [5]}, "one limit per item"),
    ):
        with pytest.raises(FastglowError, match=message):
            model.infer_pieces(TEXT, LENGTHS, piece_frames=3, **options)
    with pytest.raises(FastglowError, match="input_lengths from 5 to 8 must be"):
        model.infer_pieces(TEXT, LENGTHS + 1 + (LENGTHS < 3) * 2, piece_frames=3)
    for sizes, message in ((0, "^piece_frames=0 must be at least 1$"), ([], "^piece_frames is empty")):
        with pytest.raises(FastglowError, match=message):
            next(model.infer_pieces(TEXT, LENGTHS, piece_frames=sizes))


@pytest.mark.parametrize("end", ["close", "del"])
def test_a_stream_that_is_given_up_frees_everything(end):
    model = build(gate_threshold=1.0)
    kept = []
    infer_pieces = model.decoder.infer_pieces

    def kept_pieces(memory, *arguments, **options):
        kept.append(weakref.ref(memory))
        pieces = infer_pieces(memory, *arguments, **options)
        kept.append(weakref.ref(pieces))
        return pieces

    with mock.patch.object(model.decoder, "infer_pieces", kept_pieces):
        pieces = model.infer_pieces(TEXT, LENGTHS, seed=0, piece_frames=3)
    next(pieces)
    assert all(one() is not None for one in kept)
    if end == "close":
        pieces.close()
        assert list(pieces) == []
    else:
        del pieces
    gc.collect()
    assert [one() for one in kept] == [None, None]


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_nothing_requires_gradients_and_the_callers_mode_stays():
    model = build(gate_threshold=1.0)
    pieces = model.infer_pieces(TEXT, LENGTHS, seed=0, piece_frames=3)
    for piece in pieces:
        assert torch.is_grad_enabled()
        assert not piece.mel.requires_grad and not piece.alignments.requires_grad


@pytest.mark.filterwarnings("ignore::fastglow.models.tacotron2.DecoderStepLimitWarning")
def test_a_stream_begun_in_inference_mode_goes_on_outside():
    model = build(gate_threshold=1.0)
    expected = model.infer(TEXT, LENGTHS, seed=0)
    with torch.inference_mode():
        pieces = model.infer_pieces(TEXT, LENGTHS, seed=0, piece_frames=3)
        first = next(pieces)
    torch.testing.assert_close(joined([first, *pieces]), expected, atol=1e-5, rtol=0)
