"""Log-mel: NVIDIA's values, an independent fp64 implementation, precision, gradients, errors."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from fastglow.audio import MelConfig, MelSpectrogram
from fastglow.audio.mel import hz_to_mel, mel_filterbank, mel_to_hz
from fastglow.errors import FastglowError

ODD = dict(
    sampling_rate=16000,
    filter_length=800,
    hop_length=200,
    win_length=640,
    n_mel_channels=40,
    mel_fmin=50,
    mel_fmax=7600,
)


def slaney_mel(hz):
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * np.log(hz / 1000) / np.log(6.4)


def slaney_hz(mel):
    return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def independent_filters(c):
    """Triangle by triangle, by the definition."""
    low, high = slaney_mel(c.mel_fmin), slaney_mel(c.mel_fmax)
    corners = [slaney_hz(m) for m in np.linspace(low, high, c.n_mel_channels + 2)]
    filters = np.zeros((c.n_mel_channels, c.filter_length // 2 + 1))
    for i, (left, centre, right) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        height = 2 / (right - left)
        for k in range(filters.shape[1]):
            hz = k * c.sampling_rate / c.filter_length
            if left < hz <= centre:
                filters[i, k] = height * (hz - left) / (centre - left)
            elif centre < hz < right:
                filters[i, k] = height * (right - hz) / (right - centre)
    return filters


def independent_log_mel(audio, c):
    """fp64, one explicit Fourier sum per frame."""
    half = c.filter_length // 2
    padded = np.pad(audio.astype(np.float64), half, mode="reflect")
    n = np.arange(c.win_length)
    window = np.zeros(c.filter_length)
    left = (c.filter_length - c.win_length) // 2
    window[left : left + c.win_length] = 0.5 - 0.5 * np.cos(2 * np.pi * n / c.win_length)
    time = np.arange(c.filter_length)
    basis = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), time) / c.filter_length)
    columns = []
    for start in range(0, len(audio) + 1, c.hop_length):
        columns.append(np.abs(basis @ (window * padded[start : start + c.filter_length])))
    return np.log(np.maximum(independent_filters(c) @ np.stack(columns, axis=1), 1e-5))


def speechlike(n, rate, seed=0):
    """Harmonics of a gliding pitch over a faint noise, fp32 in [-1, 1]."""
    time = np.arange(n) / rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 1.5 * time)) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 30))
    noise = np.random.default_rng(seed).normal(size=n)
    return (0.2 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time)) + 0.01 * noise).astype(np.float32)


@pytest.mark.parametrize("name", ["LJ001-0002", "chirp", "noise", "silence"])
def test_equals_the_reference(golden, name):
    tensors = golden("mel")
    log_mel = MelSpectrogram()(tensors[f"audio/{name}"][None])
    assert log_mel.dtype == torch.float32
    torch.testing.assert_close(log_mel[0], tensors[f"mel/{name}"], rtol=0, atol=1e-4)


def test_all_golden_items_are_compared(golden):
    assert set(golden("mel").group("audio")) == {"LJ001-0002", "chirp", "noise", "silence"}


@pytest.mark.parametrize("name", ["LJ001-0002", "chirp", "noise"])
def test_fp64_has_the_references_magnitudes(golden, name):
    """The FFT path, compared before the logarithm amplifies rounding errors."""
    tensors = golden("mel")
    log_mel = MelSpectrogram()(tensors[f"audio/{name}"][None].double())
    assert log_mel.dtype == torch.float64
    torch.testing.assert_close(log_mel[0].exp(), tensors[f"mel/{name}"].double().exp(), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("changes", [{}, ODD, {**ODD, "mel_fmax": None, "win_length": 799}])
@pytest.mark.parametrize("n", [1601, 4000])
def test_equals_an_independent_implementation(changes, n):
    config = MelConfig(**changes)
    audio = speechlike(n, config.sampling_rate)
    expected = independent_log_mel(audio, config)
    mel = MelSpectrogram(**changes)
    assert expected.shape == (config.n_mel_channels, n // config.hop_length + 1)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        log_mel = mel(torch.from_numpy(audio)[None].to(dtype))[0]
        np.testing.assert_allclose(log_mel.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("changes", [{}, ODD])
def test_filterbank_equals_an_independent_one(changes):
    config = MelConfig(**changes)
    np.testing.assert_allclose(mel_filterbank(config), independent_filters(config), rtol=1e-9, atol=1e-15)


def test_filters_have_unit_area():
    """In the limit of many FFT bins, by Slaney's normalisation."""
    filters = mel_filterbank(MelConfig(filter_length=65536, win_length=1024))
    np.testing.assert_allclose(filters.sum(axis=1) * 22050 / 65536, 1.0, rtol=1e-3)


def test_mel_scale_inverts_and_has_its_known_points():
    hz = np.array([0.0, 200.0, 999.9, 1000.0, 6400.0, 11025.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, rtol=1e-12)
    np.testing.assert_allclose(hz_to_mel([200.0, 1000.0, 6400.0]), [3.0, 15.0, 42.0], rtol=1e-12)


def test_batched_equals_alone():
    audio = torch.from_numpy(np.stack([speechlike(3000, 22050, seed) for seed in range(3)]))
    mel = MelSpectrogram()
    batched = mel(audio)
    assert batched.shape == (3, 80, 12)
    for i in range(3):
        torch.testing.assert_close(batched[i], mel(audio[i : i + 1])[0], rtol=0, atol=1e-5)


def test_gradient_equals_finite_differences():
    mel = MelSpectrogram(8000, filter_length=32, hop_length=8, win_length=24, n_mel_channels=4, mel_fmax=None)
    audio = 0.5 * torch.randn(2, 40, dtype=torch.float64).clamp(-1.9, 1.9)
    assert torch.autograd.gradcheck(mel, audio.requires_grad_())


def test_gradient_of_silence_is_zero():
    audio = torch.zeros(1, 2000, requires_grad=True)
    MelSpectrogram()(audio).sum().backward()
    assert torch.equal(audio.grad, torch.zeros(1, 2000))


def test_trains_after_a_call_in_inference_mode():
    mel = MelSpectrogram()
    audio = 0.1 * torch.randn(1, 2000)
    with torch.inference_mode():
        mel(audio)
    audio.requires_grad_()
    mel(audio).sum().backward()
    assert audio.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    audio = torch.from_numpy(speechlike(3000, 22050))[None].to(dtype)
    expected = MelSpectrogram()(audio.float())
    mel = MelSpectrogram().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_mel = mel(audio)
    assert log_mel.dtype == torch.float32
    assert torch.equal(log_mel, expected)


def test_has_no_state_and_survives_copies():
    mel = MelSpectrogram(**ODD)
    audio = torch.from_numpy(speechlike(2000, 16000))[None]
    expected = mel(audio)
    assert mel.state_dict() == {} and not list(mel.parameters())
    assert torch.equal(copy.deepcopy(mel)(audio), expected)
    assert torch.equal(pickle.loads(pickle.dumps(mel))(audio), expected)


@pytest.mark.gpu
def test_magnitudes_on_the_gpu_equal_those_on_the_cpu():
    audio = torch.from_numpy(np.stack([speechlike(9000, 22050, seed) for seed in range(2)]))
    mel = MelSpectrogram().cuda()
    torch.testing.assert_close(mel(audio.cuda()).cpu().exp(), mel(audio).exp(), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    "audio, message",
    [
        (torch.zeros(2000), r"has shape \[2000\], must be \[B, N\].*audio\[None\]"),
        (torch.zeros(1, 2, 2000), r"has shape \[1, 2, 2000\], must be \[B, N\]"),
        (torch.zeros(0, 2000), r"has shape \[0, N\], must have at least one clip"),
        (torch.zeros(1, 2000, dtype=torch.int16), "has dtype torch.int16"),
        (torch.zeros(1, 512), "has 512 samples, must have at least 513"),
        (torch.full((1, 2000), 1.5), "audio peaks at 1.5"),
        (torch.full((1, 2000), -1.5), "audio peaks at 1.5"),
        (torch.full((1, 2000), float("nan")), "audio peaks at nan"),
    ],
)
def test_bad_audio_is_named(audio, message):
    with pytest.raises(FastglowError, match=message):
        MelSpectrogram()(audio)


def test_the_shortest_audio_works():
    assert MelSpectrogram()(torch.ones(1, 513)).shape == (1, 80, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mel_fmax": 12000}, "mel_fmax=12000 must be at most 11025 Hz"),
        ({"mel_fmin": 8000}, "mel_fmin=8000 must be between 0 and"),
        ({"mel_fmin": -1}, "mel_fmin=-1 must be between 0 and"),
        ({"mel_fmin": "low"}, "mel_fmin='low' must be a frequency in Hz"),
        ({"mel_fmax": float("nan")}, "mel_fmax"),
        ({"win_length": 2048}, "win_length=2048 must be at most filter_length=1024"),
        ({"filter_length": 1023, "win_length": 512}, "filter_length=1023 must be even"),
        ({"hop_length": 0}, "hop_length=0 must be a positive integer"),
        ({"hop_length": 256.0}, "hop_length=256.0 must be a positive integer"),
        ({"hop_length": 2**31}, "hop_length must be below 2\\^31, the value has 32 bits"),
        ({"mel_fmax": 10**400}, "mel_fmax=1.* must be a frequency in Hz"),
        ({"n_mel_channels": True}, "n_mel_channels=True must be a positive integer"),
    ],
)
def test_bad_parameters_are_named(changes, message):
    with pytest.raises(FastglowError, match=message):
        MelSpectrogram(**changes)


def test_empty_filters_are_warned_of():
    with pytest.warns(UserWarning, match="of 128 mel channels contain no FFT bin"):
        MelSpectrogram(filter_length=256, win_length=256, n_mel_channels=128)


def test_config_compares_by_meaning():
    assert MelConfig(mel_fmax=None) == MelConfig(mel_fmax=11025)
    assert hash(MelConfig(mel_fmin=0)) == hash(MelConfig(mel_fmin=0.0))
    assert MelConfig() != MelConfig(hop_length=128)
    assert MelSpectrogram(**ODD).config == MelConfig(**ODD)


@pytest.mark.parametrize("changes", [{}, ODD, {"mel_fmax": None}])
def test_config_round_trips_through_json(changes):
    config = MelConfig(**changes)
    assert MelConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert json.dumps(config.as_dict()) == json.dumps(MelConfig.from_dict(config.as_dict()).as_dict())
    assert MelSpectrogram.from_config(config).config == config


def test_config_refuses_unknown_parameters():
    with pytest.raises(FastglowError, match="unknown audio parameter 'fmax'.*mel_fmax"):
        MelConfig.from_dict({"fmax": 8000})
