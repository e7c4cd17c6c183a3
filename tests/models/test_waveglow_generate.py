"""WaveGlow from noise to audio with gradients."""

import pytest
import torch

from fastglow.errors import FastglowError

from .test_waveglow import STRUCTURES, build, mel_and_audio


def noise_for(model, audio, dtype=torch.float64):
    return torch.randn(len(audio), model.n_group, audio.shape[1] // model.n_group, dtype=dtype)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_generate_is_the_inference(structure):
    model = build(**STRUCTURES[structure])
    mel, audio = mel_and_audio(model)
    noise = torch.randn(2, model.n_group, audio.shape[1] // model.n_group, dtype=torch.float64)
    expected = model.infer(mel, 0.7, noise=noise)
    torch.testing.assert_close(model.generate(mel, 0.7 * noise), expected)
    torch.testing.assert_close(model((mel, audio), noise=0.7 * noise), expected)


@pytest.mark.parametrize("upsample_to_groups", [False, True])
def test_generate_has_gradients(upsample_to_groups):
    """Of every weight, against finite differences along a random direction."""
    torch.manual_seed(2)
    model = build(n_flows=3, upsample_to_groups=upsample_to_groups)
    mel, audio = mel_and_audio(model)
    noise = torch.randn(2, model.n_group, audio.shape[1] // model.n_group, dtype=torch.float64)
    upstream = torch.randn_like(audio)
    model.generate(mel, noise).backward(upstream)
    step = 1e-6
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            found = []
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                model.refresh()
                found.append((model.generate(mel, noise) * upstream).sum())
                parameter.sub_(sign * step * direction)
        expected = (found[0] - found[1]) / (2 * step)
        torch.testing.assert_close((parameter.grad * direction).sum(), expected, rtol=1e-4, atol=1e-6, msg=name)


def test_a_part_of_the_mel_is_enough():
    """Noise of fewer groups: the beginning, to the reach of the coupling networks."""
    model = build()
    _, after = model.receptive_field
    mel, audio = mel_and_audio(model, n_frames=after + 5)
    noise = noise_for(model, audio)
    known = 2 * model.config.upsample_stride
    part = model.generate(mel, noise[:, :, : known * (after + 2) // 2 // model.n_group])
    torch.testing.assert_close(part[:, :known], model.generate(mel, noise)[:, :known])


def test_hooks_of_the_convolutions_run():
    model = build(n_flows=3)
    mel, audio = mel_and_audio(model)
    seen = []
    for convolution in model.convinv:
        convolution.register_forward_hook(lambda *_: seen.append(1))
    model.generate(mel, noise_for(model, audio))
    assert len(seen) == 3


@pytest.mark.parametrize("how", ["bfloat16 model", "autocast"])
def test_reduced_precision(how):
    torch.manual_seed(3)
    model = build(torch.float32)
    mel, audio = (x.float() for x in mel_and_audio(model))
    noise = 0.5 * noise_for(model, audio, torch.float32)
    expected = model.generate(mel, noise).detach()
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            made = model.generate(mel, noise)
        made.float().square().sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    else:
        made = model.bfloat16().generate(mel.bfloat16(), noise.bfloat16())
    assert (made.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("shape", [(2, 10, 4), (2, 4, 4), (1, 8, 4), (2, 8, 0), (2, 8)])
def test_noise_that_does_not_fit(shape):
    model = build()
    mel, _ = mel_and_audio(model)
    with pytest.raises(FastglowError, match="noise has shape .*must be"):
        model.generate(mel, torch.zeros(shape, dtype=torch.float64))


def test_a_mel_that_is_too_short():
    model = build()
    mel, audio = mel_and_audio(model)
    with pytest.raises(FastglowError, match="a mel of 1 frames covers"):
        model.generate(mel[:, :, :1], torch.zeros(2, model.n_group, 999, dtype=torch.float64))
