"""TacotronSTFT as NVIDIA's data loaders call it."""

import pytest
import torch

from fastglow.audio import MelSpectrogram, TacotronSTFT
from fastglow.errors import FastglowError


def test_nvidias_values(golden):
    tensors = golden("mel")
    stft = TacotronSTFT()
    for name, audio in tensors.group("audio").items():
        found = stft.mel_spectrogram(audio[None] if audio.dim() == 1 else audio)
        expected = tensors[f"mel/{name}"]
        torch.testing.assert_close(found.view_as(expected), expected, atol=1e-4, rtol=0)


def test_the_order_of_its_arguments():
    """filter_length, hop_length, win_length, n_mel_channels, sampling_rate, mel_fmin, mel_fmax."""
    stft = TacotronSTFT(800, 200, 640, 40, 16000, 50.0, 7600.0)
    other = MelSpectrogram(
        sampling_rate=16000,
        filter_length=800,
        hop_length=200,
        win_length=640,
        n_mel_channels=40,
        mel_fmin=50.0,
        mel_fmax=7600.0,
    )
    assert stft.config == other.config
    assert (stft.n_mel_channels, stft.sampling_rate) == (40, 16000)
    audio = torch.rand(2, 3001) - 0.5
    assert torch.equal(stft.mel_spectrogram(torch.autograd.Variable(audio)), other(audio))
    with pytest.raises(FastglowError, match="must be in"):
        stft.mel_spectrogram(2 * audio + 1)
