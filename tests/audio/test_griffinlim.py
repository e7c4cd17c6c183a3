"""Griffin-Lim on recorded speech: accuracy and reproducibility."""

import math

import pytest
import torch

from fastglow.audio import MelConfig, MelSpectrogram, griffin_lim, griffinlim
from fastglow.errors import FastglowError

HOP = 256


@pytest.fixture(scope="module")
def speech(golden):
    """1.36 s of LJ Speech: (audio [N], NVIDIA's log-mel [80, 118])."""
    tensors = golden("mel")
    return tensors["audio/LJ001-0002"], tensors["mel/LJ001-0002"]


def convergence(audio, log_mel):
    """Relative error (Frobenius) of the mel magnitudes of `audio` [T * hop] against `log_mel` [80, T]."""
    again = MelSpectrogram()(audio[None].clamp(-1, 1))[0, :, : log_mel.size(1)].exp()
    return ((again - log_mel.exp()).norm() / log_mel.exp().norm()).item()


def test_reconstructs_speech(speech):
    _, log_mel = speech
    audio = griffin_lim(log_mel, MelConfig(), seed=0)
    assert audio.shape == (118 * HOP,) and audio.dtype == torch.float32
    # Measured over seeds: 0.019 to 0.021; of the source's spectrum, before any iteration, 0.16.
    assert convergence(audio, log_mel) < 0.03
    assert convergence(griffin_lim(log_mel, n_iter=0, seed=0), log_mel) > 0.1


def test_linear_spectrum_is_close_to_the_recordings(speech):
    original, log_mel = speech
    audio = griffin_lim(log_mel, seed=0)[: original.size(0)]
    window = torch.hann_window(1024)

    def magnitude(x):
        return torch.stft(x, 1024, HOP, window=window, return_complex=True).abs()[:370]

    ours, real = magnitude(audio), magnitude(original)
    # Measured over seeds: 0.111 to 0.115.
    assert (ours - real).norm() / real.norm() < 0.14
    # In time and in level, not only in shape.
    assert abs(20 * math.log10(audio.norm() / original.norm())) < 0.5


def test_the_largest_values_are_finite():
    assert griffin_lim(torch.full((80, 5), 30.0), n_iter=5, momentum=1000, seed=0).isfinite().all()


def test_momentum_helps(speech):
    _, log_mel = speech
    fast, slow = (griffin_lim(log_mel, momentum=momentum, n_iter=30, seed=0) for momentum in (0.99, 0.0))
    assert convergence(fast, log_mel) < 0.6 * convergence(slow, log_mel)


def test_seed_fixes_the_bits(speech):
    mel = speech[1][:, :20]
    first = griffin_lim(mel, n_iter=4, seed=3)
    torch.rand(5)
    assert torch.equal(griffin_lim(mel, n_iter=4, seed=3), first)
    assert not torch.equal(griffin_lim(mel, n_iter=4, seed=4), first)


def test_a_seed_leaves_the_global_generator_alone_and_none_uses_it(speech):
    mel = speech[1][:, :20]
    state = torch.get_rng_state()
    griffin_lim(mel, n_iter=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    first = griffin_lim(mel, n_iter=1)
    assert not torch.equal(griffin_lim(mel, n_iter=1), first)
    torch.set_rng_state(state)
    assert torch.equal(griffin_lim(mel, n_iter=1), first)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_batched_equals_alone(speech, as_tensor):
    lengths = [7, 0, 97, 1]
    batch = torch.full((4, 80, 97), 123.0)
    for i, length in enumerate(lengths):
        batch[i, :, :length] = speech[1][:, 10 * i : 10 * i + length]
    given = torch.tensor(lengths) if as_tensor else lengths
    audio = griffin_lim(batch, n_iter=5, seed=1, lengths=given)
    assert audio.shape == (4, 97 * HOP)
    for i, length in enumerate(lengths):
        if length:
            alone = griffin_lim(batch[i, :, :length], n_iter=5, seed=1)
            assert torch.equal(audio[i, : length * HOP], alone)
        assert not audio[i, length * HOP :].any()


@pytest.fixture
def threads():
    """Sets the number of torch's threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_threads_change_no_bit(speech, threads, n_threads, mode):
    mel = speech[1].repeat(1, 3)[:, :301].requires_grad_()
    one = griffin_lim(mel, n_iter=4, seed=0)
    threads(n_threads)
    with mode():
        several = griffin_lim(mel, n_iter=4, seed=0)
    assert torch.equal(several, one)
    assert torch.get_num_threads() == n_threads


def test_an_error_leaves_the_number_of_threads(threads):
    threads(2)
    with pytest.raises(FastglowError, match="NaN"):
        griffin_lim(torch.full((80, 5), math.nan))
    assert torch.get_num_threads() == 2


def test_parts_of_the_frames_join(speech, monkeypatch):
    mel = speech[1]
    several = griffin_lim(mel, n_iter=4, seed=0)
    monkeypatch.setattr(griffinlim, "_MOST_FRAMES", 1000)
    whole = griffin_lim(mel, n_iter=4, seed=0)
    torch.testing.assert_close(several, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_frames", [1, 2, 3])
def test_short_mels(speech, n_frames):
    audio = griffin_lim(speech[1][None, :, 40 : 40 + n_frames], n_iter=3, seed=0)
    assert audio.shape == (1, n_frames * HOP)
    assert audio.isfinite().all() and audio.abs().max() > 1e-3


def test_other_parameters():
    config = MelConfig(
        sampling_rate=16000, filter_length=800, hop_length=200, win_length=640, n_mel_channels=40, mel_fmin=50
    )
    time = torch.arange(8000) / 16000
    tone = sum(torch.sin(2 * torch.pi * 150 * k * time) / k for k in range(1, 20)) * 0.2
    log_mel = MelSpectrogram.from_config(config)(tone[None])
    audio = griffin_lim(log_mel, config, seed=0)
    assert audio.shape == (1, 41 * 200)
    again = MelSpectrogram.from_config(config)(audio.clamp(-1, 1))[:, :, :41].exp()
    assert (again - log_mel.exp()).norm() / log_mel.exp().norm() < 0.1


def test_silence_stays_silent():
    assert griffin_lim(torch.full((80, 20), math.log(1e-5)), seed=0).abs().max() < 1e-4


def test_power_sharpens_each_frame_at_its_energy(speech):
    _, log_mel = speech
    plain, sharp = (griffin_lim(log_mel, n_iter=20, seed=0, power=power) for power in (1.0, 1.2))
    mel_plain, mel_sharp = (MelSpectrogram()(audio[None].clamp(-1, 1))[0, :, :118] for audio in (plain, sharp))
    assert mel_sharp.std(0).mean() > 1.1 * mel_plain.std(0).mean()
    level_plain, level_sharp = (mel.exp().norm(dim=0).log() for mel in (mel_plain, mel_sharp))
    assert (level_sharp - level_plain).abs().mean() < 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_give_fp32(speech, dtype):
    mel = speech[1][:, :20].half()
    audio = griffin_lim(mel.to(dtype), n_iter=4, seed=0)
    assert audio.dtype == torch.float32
    torch.testing.assert_close(audio, griffin_lim(mel.float(), n_iter=4, seed=0), rtol=0, atol=1e-6)


def test_autocast_changes_nothing(speech):
    mel = speech[1][:, :20]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = griffin_lim(mel, n_iter=4, seed=0)
    assert torch.equal(inside, griffin_lim(mel, n_iter=4, seed=0))


@pytest.mark.parametrize(
    "mel, keywords, message",
    [
        (torch.zeros(80), {}, r"has shape \[80\], must be \[B, 80, T\]"),
        (torch.zeros(1, 40, 5), {}, r"has shape \[1, 40, 5\]"),
        (torch.zeros(1, 80, 0), {}, r"has shape \[1, 80, 0\]"),
        (torch.full((1, 80, 5), float("nan")), {}, "NaN, infinite or too large"),
        (torch.full((1, 80, 5), 100.0), {}, "NaN, infinite or too large"),
        (torch.full((1, 80, 5), 45.0), {}, "NaN, infinite or too large"),
        (torch.full((1, 80, 5), 29.0), {"power": 2}, "NaN, infinite or too large"),
        (torch.zeros(1, 80, 5).index_fill(2, torch.tensor(3), float("-inf")), {}, "NaN, infinite or too large"),
        (torch.zeros(2, 80, 5), {"lengths": [5]}, r"lengths=\[5\] must be 2 values between 0 and 5 frames"),
        (torch.zeros(1, 80, 5), {"lengths": [6]}, r"lengths=\[6\] must be 1 values between 0 and 5"),
        (torch.zeros(1, 80, 5), {"n_iter": -1}, "n_iter=-1 must be at least 0"),
        (torch.zeros(1, 80, 5), {"momentum": -0.5}, "momentum=-0.5 from 0 to 1000"),
        (torch.zeros(1, 80, 5), {"power": 0}, "power=0 above 0"),
        (torch.zeros(1, 80, 5), {"power": float("inf")}, "power=inf above 0 and finite"),
        (torch.zeros(1, 80, 5), {"momentum": 1001}, "momentum=1001 from 0 to 1000"),
        (torch.zeros(1, 80, 5), {"config": MelConfig(hop_length=600)}, "hop_length=600 must be at most half"),
    ],
)
def test_errors_are_named(mel, keywords, message):
    with pytest.raises(FastglowError, match=message):
        griffin_lim(mel, **keywords)
