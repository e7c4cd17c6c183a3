"""The acoustic model in an engine: recorded in buckets, in pieces, and without waiting for a GPU."""

import pytest
import torch

from fastglow.engine.acoustic import Acoustic
from fastglow.engine.recording import Recorder

from ..kernels.checks import host_syncs
from .conftest import make_tacotron2
from .fake_graphs import graphs  # noqa: F401

TEXTS = [[3, 9, 40, 7], [12, 5], [8, 30, 31, 32, 33, 34, 7]]
SEEDS, LIMITS = [4, 5, -6], [30, 11, 17]


def acoustic(device="cpu"):
    return Acoustic(make_tacotron2().to(device, torch.float64 if device == "cpu" else torch.float32), 256 / 22050)


def assert_same(found, expected, atol):
    for ours, other in zip(found, expected, strict=True):
        assert ours.stopped == other.stopped and ours.alignment.shape == other.alignment.shape
        torch.testing.assert_close(ours.mel, other.mel, atol=atol, rtol=0)
        torch.testing.assert_close(
            torch.from_numpy(ours.alignment), torch.from_numpy(other.alignment), atol=1e-6, rtol=0
        )


def test_encoder_and_postnet_in_buckets_change_nothing(graphs, monkeypatch):  # noqa: F811
    """Also when a graph's buffers hold a longer text of before."""
    engine = acoustic()
    batches = [slice(0, 3), slice(1, 3), slice(0, 1), slice(2, 3), slice(0, 3)]
    found = [engine.decode(TEXTS[one], SEEDS[one], LIMITS[one]) for one in batches for _ in range(2)]
    assert graphs.recorded > 2 and graphs.replayed > graphs.recorded
    monkeypatch.setattr(Recorder, "records", False)
    for i, one in enumerate(batches):
        expected = engine.decode(TEXTS[one], SEEDS[one], LIMITS[one])
        for decoded in found[2 * i : 2 * i + 2]:
            assert_same(decoded, expected, 1e-9)


@pytest.mark.parametrize("n_frames", [1, 7, 32, 500])
def test_pieces_are_the_whole(n_frames):
    engine = acoustic()
    for text, seed in zip(TEXTS, SEEDS, strict=True):
        (whole,) = engine.decode([text], [seed], [engine.max_steps])
        pieces = list(engine.pieces(text, seed, n_frames))
        assert [piece.ended for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        mel = torch.cat([piece.mel for piece in pieces], dim=1)[:, : whole.mel.shape[1]]
        alignment = torch.cat([torch.from_numpy(piece.alignment) for piece in pieces])
        torch.testing.assert_close(mel, whole.mel, atol=1e-9, rtol=0)
        torch.testing.assert_close(alignment, torch.from_numpy(whole.alignment), atol=1e-6, rtol=0)
        assert pieces[-1].stopped == whole.stopped


def test_most_symbols_fit_the_step_limit():
    """Slow speech of 10 symbols a second."""
    for max_steps, frames, expected in ((1000, 1, 116), (2000, 1, 232), (4000, 1, 250), (1000, 2, 232), (30, 2, 60)):
        model = make_tacotron2(max_decoder_steps=max_steps, n_frames_per_step=frames)
        assert Acoustic(model, 256 / 22050).most_symbols == expected


@pytest.mark.gpu
def test_on_a_gpu_graphs_give_the_bits_of_the_first_call():
    engine = acoustic("cuda")
    first, *others = (engine.decode(TEXTS, SEEDS, LIMITS) for _ in range(4))
    for other in others:
        assert_same(other, first, 0)
    assert engine.call.memory() > 0


@pytest.mark.gpu
def test_encoder_and_postnet_do_not_wait_for_the_device():
    engine = acoustic("cuda")
    for _ in range(2):
        engine.decode(TEXTS, SEEDS, LIMITS)
    text, lengths, mel = torch.tensor([[3, 9, 40, 7]]), torch.tensor([4]), torch.zeros(1, 80, 20, device="cuda")

    def run():
        inputs, _ = engine.tacotron2._encode(text, lengths, [1], None, engine.call)
        engine.call(engine.tacotron2.add_residual, *engine.call.padded(mel, inputs[1]))

    run()
    with host_syncs("error"):
        run()
