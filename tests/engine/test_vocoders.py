"""A vocoder gives each item of a batch the same audio as alone."""

import random

import numpy as np
import pytest
import torch

from fastglow.audio import MelConfig
from fastglow.engine.vocoders import build_vocoder
from fastglow.voices import VOCODERS

from .conftest import make_waveglow

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("denoise", [0.0, 0.2])
@pytest.mark.parametrize("name", VOCODERS)
@pytest.mark.parametrize("lengths", [[12, 7, 9], [12, 12, 12], [1, 12, 2], [11, 12, 11]], ids=str)
def test_batched_as_alone(name, denoise, device, lengths):
    vocoder = build_vocoder(name, MelConfig(), make_waveglow().to(device), 0.5, denoise)
    mels, seeds = torch.randn(3, 80, 12, device=device) - 4, [3, 4, 3]
    batch = vocoder.vocode(mels, lengths, seeds)
    for mel, length, seed, audio in zip(mels, lengths, seeds, batch, strict=True):
        (alone,) = vocoder.vocode(mel[None, :, :length], [length], [seed])
        assert audio.shape == (length * 256,)
        assert audio.dtype == np.float32
        assert np.abs(audio).max() > 0
        np.testing.assert_allclose(audio, alone, atol=1e-5 if device == "cpu" else 1e-4, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("denoise", [0.0, 0.2])
@pytest.mark.parametrize("structure", [{}, {"upsample_stride": 200, "upsample_kernel_size": 800}])
def test_parts_with_their_context_are_the_whole(denoise, structure, device):
    model = make_waveglow(**structure).to(device, torch.float64)
    hop = model.config.upsample_stride
    vocoder = build_vocoder("waveglow", MelConfig(hop_length=hop), model, 0.5, denoise)
    mel, n_frames = torch.randn(1, 80, 200, device=device, dtype=torch.float64) - 4, 200
    (whole,) = vocoder.vocode(mel, [n_frames], [9])
    before, after, step = vocoder.context
    cuts = [0, *sorted(random.sample(range(1, n_frames), 6)), n_frames]
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        first, last = max(0, start - before) // step * step, min(n_frames, stop + after)
        (part,) = vocoder.vocode(mel[:, :, first:last], [last - first], [9], first)
        np.testing.assert_allclose(
            part[(start - first) * hop : (stop - first) * hop], whole[start * hop : stop * hop], atol=1e-6, rtol=0
        )


def test_the_denoiser_follows_the_weights():
    model, other = make_waveglow(), make_waveglow()
    with torch.no_grad():
        other.convinv[0].conv.weight.mul_(0.5)
    mel = torch.randn(1, 80, 9) - 4
    vocoder = build_vocoder("waveglow", MelConfig(), model, 0.5, 0.3)
    (before,) = vocoder.vocode(mel, [9], [1])
    model.load_state_dict(other.state_dict())
    (after,) = vocoder.vocode(mel, [9], [1])
    (expected,) = build_vocoder("waveglow", MelConfig(), other, 0.5, 0.3).vocode(mel, [9], [1])
    assert not np.allclose(before, after, atol=1e-3)
    np.testing.assert_array_equal(after, expected)
