"""A vocoder gives each item of a batch the same audio as alone."""

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
@pytest.mark.parametrize("lengths", [[12, 7, 9], [12, 12, 12]], ids=str)
def test_batched_as_alone(name, denoise, device, lengths):
    vocoder = build_vocoder(name, MelConfig(), make_waveglow().to(device), 0.5, denoise)
    mels, seeds = torch.randn(3, 80, 12, device=device) - 4, [3, 4, 3]
    batch = vocoder.vocode(mels, lengths, seeds)
    for mel, length, seed, audio in zip(mels, lengths, seeds, batch, strict=True):
        (alone,) = vocoder.vocode(mel[None, :, :length], [length], [seed])
        assert audio.shape == (length * 256,)
        assert (audio.dtype, audio.device.type) == (torch.float32, "cpu")
        assert audio.abs().max() > 0
        if device == "cpu":
            assert torch.equal(audio, alone)
        else:
            torch.testing.assert_close(audio, alone, atol=1e-4, rtol=0)
