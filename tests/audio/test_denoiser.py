"""The denoiser: NVIDIA's values, odd lengths, precision, errors."""

import pytest
import torch
from torch import nn

from fastglow.audio import Denoiser
from fastglow.errors import FastglowError
from fastglow.models.waveglow import WaveGlow


class Hum(nn.Module):
    """Has no more of a WaveGlow than NVIDIA/waveglow's has; hums at one frequency, louder for louder mels."""

    def __init__(self, n_mel_channels=7, dtype=torch.float32):
        super().__init__()
        self.upsample = nn.ConvTranspose1d(n_mel_channels, n_mel_channels, 4, dtype=dtype)
        self.heard = None

    def infer(self, mel, sigma):
        assert sigma == 0 and mel.shape == (1, self.upsample.in_channels, 88)
        assert mel.dtype == self.upsample.weight.dtype
        self.heard = mel
        n = torch.arange(88 * 256)
        return (0.1 * torch.cos(2 * torch.pi * n / 32))[None].to(mel.dtype)


@pytest.fixture(scope="module")
def reference(golden):
    tensors = golden("waveglow_denoiser")
    waveglow = WaveGlow(**tensors.config)
    waveglow.load_state_dict(tensors.group("state"))
    return waveglow, tensors


def test_bias_spectrum_equals_the_reference(reference):
    waveglow, tensors = reference
    torch.testing.assert_close(Denoiser(waveglow).bias_spec, tensors["denoiser/bias_spec"], rtol=1e-5, atol=1e-5)


def test_audio_equals_the_reference(reference):
    waveglow, tensors = reference
    expected = tensors["denoiser/audio_strength01"]  # [B, 1, N]
    denoiser = Denoiser(waveglow)
    audio = tensors["infer/audio_sigma07"]
    torch.testing.assert_close(denoiser(audio, strength=0.1), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser(audio), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser(audio, strength=0.1).squeeze(1), expected[:, 0], rtol=0, atol=1e-5)
    # The effect of the strength is far above that tolerance.
    assert (audio - expected[:, 0]).abs().max() > 1e-2


@pytest.mark.parametrize(("n", "n_whole"), [(1024, 1024), (1025, 1024), (1279, 1024), (5121, 5120)])
def test_the_last_incomplete_hop_is_left_out(n, n_whole):
    denoiser = Denoiser(Hum())
    audio = 0.3 * torch.randn(2, n)
    assert denoiser(audio, 0.3).shape == (2, 1, n_whole)
    assert torch.equal(denoiser(audio, 0.3)[:, 0], denoiser.denoise(audio, 0.3)[:, :n_whole])


@pytest.mark.parametrize("sizes", [{}, {"filter_length": 512, "n_overlap": 8, "win_length": 400}])
@pytest.mark.parametrize("n", [513, 1000, 5120, 7777])
def test_equals_torchs_transform(n, sizes):
    waveglow = Hum()
    denoiser = Denoiser(waveglow, **sizes)
    audio = 0.3 * torch.randn(2, n)
    length, win = denoiser.filter_length, denoiser.win_length
    options = {"hop_length": denoiser.hop_length, "win_length": win, "window": torch.hann_window(win)}
    spectrum = torch.stft(audio, length, pad_mode="reflect", return_complex=True, **options)
    kept = (spectrum.abs() - 0.5 * denoiser.bias_spec).clamp(min=0)
    expected = torch.istft(torch.polar(kept, spectrum.angle()), length, length=n, **options)
    torch.testing.assert_close(denoiser.denoise(audio, 0.5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [513, 1000, 5120, 7777])
def test_strength_zero_returns_the_audio(n):
    audio = 0.3 * torch.randn(2, n)
    torch.testing.assert_close(Denoiser(Hum()).denoise(audio, strength=0.0), audio, rtol=0, atol=1e-6)


def test_removes_the_hum_and_keeps_the_rest():
    denoiser = Denoiser(Hum())
    n = torch.arange(9000)
    hum = 0.1 * torch.cos(2 * torch.pi * n / 32)
    voice = 0.1 * torch.cos(2 * torch.pi * n / 100)
    cleaned = denoiser.denoise((hum + voice)[None], strength=1.0)[0]
    middle = slice(2000, 7000)
    assert (cleaned - voice)[middle].norm() < 0.05 * hum[middle].norm()


def test_batched_equals_alone():
    denoiser = Denoiser(Hum())
    audio = 0.3 * torch.randn(3, 4001)
    batched = denoiser.denoise(audio)
    for i in range(3):
        torch.testing.assert_close(batched[i], denoiser.denoise(audio[i : i + 1])[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", [{}, {"filter_length": 512, "n_overlap": 8, "win_length": 400}, {"n_overlap": 3}])
def test_items_of_a_padded_batch_equal_themselves_alone(sizes):
    """Also where the padding holds noise, at lengths that are no multiple of the hop, and next to an empty item."""
    denoiser = Denoiser(Hum(), **sizes)
    lengths = [4001, 513, 0, 1024, 3840, 2999]
    audio = 0.3 * torch.randn(len(lengths), 4100)
    batched = denoiser.denoise(audio, 0.7, lengths=torch.tensor(lengths))
    for row, item, length in zip(batched, audio, lengths, strict=True):
        if length:
            alone = denoiser.denoise(item[None, :length], 0.7)[0]
            assert (alone - item[:length]).abs().max() > 1e-3
            torch.testing.assert_close(row[:length], alone, rtol=0, atol=1e-6)
        assert not row[length:].any()


@pytest.mark.parametrize("n", [1, 2, 300, 512])
def test_an_item_shorter_than_half_a_window_is_finite_and_alike_in_any_batch(n):
    denoiser = Denoiser(Hum())
    audio = 0.3 * torch.randn(2, 1500)
    batched = denoiser.denoise(audio, 0.7, lengths=torch.tensor([1500, n]))[1]
    alone = denoiser.denoise(audio[1:, :600], 0.7, lengths=torch.tensor([n]))[0]
    assert batched.isfinite().all() and batched[:n].any()
    torch.testing.assert_close(batched[:600], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_narrow_audio_gives_float32(dtype):
    """Times 32768, as NVIDIA's scripts do, it would overflow in float16."""
    denoiser = Denoiser(Hum(dtype=dtype))
    audio = (0.3 * torch.randn(1, 3000)).to(dtype)
    for cleaned in (denoiser(audio)[:, 0], denoiser.denoise(audio)[:, :2816]):
        assert cleaned.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(cleaned.float(), denoiser(audio.float())[:, 0], rtol=0, atol=1e-6)


def test_modes_and_other_sizes():
    waveglow = Hum()
    denoiser = Denoiser(waveglow, filter_length=512, n_overlap=8, win_length=400, mode="normal")
    assert waveglow.heard.std() > 0.5
    assert denoiser.bias_spec.shape == (1, 257, 1)
    assert denoiser.state_dict() == {}
    assert "bias_spec" in dict(denoiser.named_buffers())
    audio = 0.3 * torch.randn(1, 1234)
    torch.testing.assert_close(denoiser.denoise(audio, strength=0.0), audio, rtol=0, atol=1e-6)
    Denoiser(waveglow, mode="zeros")
    assert torch.equal(waveglow.heard, torch.zeros(1, 7, 88))


def test_errors_are_named():
    with pytest.raises(FastglowError, match="denoiser mode='hum' must be"):
        Denoiser(Hum(), mode="hum")
    with pytest.raises(FastglowError, match="n_overlap=0 must be at least 3"):
        Denoiser(Hum(), n_overlap=0)
    with pytest.raises(FastglowError, match=r"win_length=512 must be between 3 hops \(768\)"):
        Denoiser(Hum(), win_length=512)
    denoiser = Denoiser(Hum())
    with pytest.raises(FastglowError, match=r"has shape \[3000\], must be \[B, N\]"):
        denoiser(torch.zeros(3000))
    with pytest.raises(FastglowError, match="at least 513"):
        denoiser(torch.zeros(1, 400))
    with pytest.raises(FastglowError, match="strength=-1 must be at least 0"):
        denoiser(torch.zeros(1, 3000), strength=-1)
