"""WaveGlow trained by what it makes of noise."""

import numpy as np
import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.train.loop import Trainer
from fastglow.train.stft_loss import FLOOR, RESOLUTIONS, magnitudes, stft_distance

from .conftest import configs


def trainer(prepared, out, **options):
    config, model_config = configs("waveglow", prepared, out, **options)
    return Trainer("waveglow", config, model_config, progress=False)


def batch_of(made):
    return made.task.collate([made.trainset[i] for i in range(3)])


@pytest.mark.parametrize("length", [300, 1024, 3001])
def test_the_gradient_is_that_of_finite_differences(length):
    torch.manual_seed(1)
    audio = (0.3 * torch.randn(2, length, dtype=torch.float64)).requires_grad_()
    target = 0.3 * torch.randn(2, length, dtype=torch.float64)
    weights = torch.randn(2, dtype=torch.float64)

    def value(samples):
        return sum(weight * part for weight, part in zip(weights, stft_distance(samples, target), strict=True))

    value(audio).backward()
    direction = torch.randn_like(target)
    with torch.no_grad():
        expected = (value(audio + 1e-7 * direction) - value(audio - 1e-7 * direction)) / 2e-7
    torch.testing.assert_close((audio.grad * direction).sum(), expected, rtol=1e-4, atol=1e-8)


def test_silence_has_a_finite_gradient():
    audio = torch.zeros(1, 2000, requires_grad=True)
    sum(stft_distance(audio, torch.zeros(1, 2000))).backward()
    assert torch.equal(audio.grad, torch.zeros_like(audio))
    assert all((magnitudes(audio, of) == FLOOR**0.5).all() for of in RESOLUTIONS)


def test_reduced_precision_is_computed_in_float32():
    audio = torch.randn(1, 3000).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = stft_distance(audio, torch.ones(1, 3000).bfloat16())
    expected = stft_distance(audio.float(), torch.ones(1, 3000))
    assert found == expected and found.convergence.dtype == torch.float32


@pytest.mark.parametrize("likelihood_weight", [0, 0.5])
def test_losses(prepared, tmp_path, likelihood_weight):
    made = trainer(prepared, tmp_path, likelihood_weight=likelihood_weight, stft_weight=2, stft_sigma=0.3)
    model, batch = made.state.model, batch_of(made)
    torch.manual_seed(4)
    losses = made.task.losses(model, batch)
    torch.manual_seed(4)
    noise = 0.3 * torch.randn(3, model.n_group, batch.audio.shape[1] // model.n_group)
    with torch.no_grad():
        mel = batch.mel[:, :, : batch.audio.shape[1] // 256]
        distance = sum(stft_distance(model.infer(mel, noise=noise), batch.audio))
        likelihood = made.task.criterion(model((batch.mel, batch.audio)))
    torch.testing.assert_close(losses["stft_loss"], distance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss"], 2 * distance + likelihood_weight * likelihood, rtol=1e-4, atol=1e-5)
    assert ("likelihood_loss" in losses) == bool(likelihood_weight)
    assert made.meter.passes == 1 + bool(likelihood_weight)
    losses["loss"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_without_the_option_the_loss_is_the_likelihood(prepared, tmp_path):
    made = trainer(prepared, tmp_path)
    losses = made.task.losses(made.state.model, batch_of(made))
    assert list(losses) == ["loss"] and made.meter.passes == 1


def test_it_learns(prepared, tmp_path):
    """From noise as loud as speech to something with the spectrum of the clips."""
    made = trainer(
        prepared, tmp_path, fit_to_data=True, likelihood_weight=0, stft_weight=1, epochs=20, learning_rate=2e-3
    )
    batch = batch_of(made)

    def distance():
        torch.manual_seed(0)
        with torch.no_grad():
            return float(made.task.losses(made.state.model, batch)["stft_loss"])

    before = distance()
    made.run()
    assert distance() < 0.8 * before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"likelihood_weight": 0}, "likelihood_weight=0 and stft_weight=0 leave no loss"),
        ({"likelihood_weight": -1}, "likelihood_weight=-1 must be finite"),
        ({"stft_weight": np.inf}, "stft_weight=inf must be finite"),
        ({"stft_sigma": np.nan}, "stft_sigma=nan must be finite"),
    ],
)
def test_bad_weights(prepared, tmp_path, options, message):
    with pytest.raises(FastglowError, match=message):
        trainer(prepared, tmp_path, **options)
