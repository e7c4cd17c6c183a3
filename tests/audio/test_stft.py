"""The STFT of frames in memory, against torch.stft and torch.istft."""

import pytest
import torch

from fastglow.audio import MelConfig
from fastglow.audio.stft import Stft, magnitude_of

SHAPES = [(1024, 256, 1024), (1024, 200, 1024), (512, 171, 400), (100, 7, 31), (64, 32, 64), (1024, 511, 1023)]


def both(n_fft, hop, win, n_frames):
    config = MelConfig(filter_length=n_fft, hop_length=hop, win_length=win, n_mel_channels=1)
    keywords = {"n_fft": n_fft, "hop_length": hop, "win_length": win, "window": torch.hann_window(win)}
    return Stft(config, n_frames, torch.device("cpu")), keywords


@pytest.mark.parametrize("n_frames", [2, 3, 12])
@pytest.mark.parametrize("n_fft, hop, win", SHAPES)
def test_forward_is_torch_stft(n_fft, hop, win, n_frames):
    stft, keywords = both(n_fft, hop, win, n_frames)
    audio = torch.randn((n_frames - 1) * hop)
    expected = torch.stft(audio, pad_mode="constant", return_complex=True, **keywords).T
    found = stft.forward(stft.pad(audio))
    assert found.shape == (n_frames, n_fft // 2 + 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * n_fft)
    torch.testing.assert_close(magnitude_of(found), found.abs())
    assert torch.equal(stft.forward(stft.pad(audio), slice(1, 3)), found[1:3])


@pytest.mark.parametrize("n_frames", [2, 3, 12])
@pytest.mark.parametrize("n_fft, hop, win", SHAPES)
def test_inverse_is_torch_istft(n_fft, hop, win, n_frames):
    stft, keywords = both(n_fft, hop, win, n_frames)
    spectrum = torch.randn(n_frames, n_fft // 2 + 1, dtype=torch.complex64)
    spectrum[:, 0] = spectrum[:, -1] = 1
    length = (n_frames - 1) * hop
    padded = stft.join([stft.share(spectrum)])
    expected = torch.istft(spectrum.T, length=length, **keywords)
    torch.testing.assert_close(stft.unpad(padded), expected, rtol=1e-4, atol=1e-5)
    # The margins are silent, so `padded` can go forward again.
    torch.testing.assert_close(padded, stft.pad(stft.unpad(padded)), rtol=0, atol=0)
    pieces = (spectrum[:1], spectrum[1:2], spectrum[2:5], spectrum[5:])
    torch.testing.assert_close(stft.join(stft.share(piece) for piece in pieces if len(piece)), padded)
