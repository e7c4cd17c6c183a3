"""The mels' further loss terms against their formulas, element by element."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fastglow.errors import FastglowError
from fastglow.train.config import Tacotron2TrainConfig
from fastglow.train.loop import Trainer
from fastglow.train.mel_losses import delta_loss, l1_loss, ssim_loss

from .conftest import configs

LENGTHS = torch.tensor([17, 1, 9])
LOSSES = (l1_loss, delta_loss, ssim_loss)


def mels(seed=0, n_channels=13, n_frames=17):
    """(predicted, target) log-mels of the range of speech, float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), n_channels, n_frames)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64) * 12 - 11 for _ in range(2))


@pytest.mark.parametrize("upper", [None, 1.0, 4.0])
def test_l1_loss(upper):
    x, y = mels()
    weights = np.linspace(1, upper or 1, 13)
    errors = [
        abs(x[b, c, t].item() - y[b, c, t].item()) * weights[c]
        for b, length in enumerate(LENGTHS.tolist())
        for c in range(13)
        for t in range(length)
    ]
    loss = l1_loss(x, y, LENGTHS) if upper is None else l1_loss(x, y, LENGTHS, upper)
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-12)


def test_delta_loss():
    x, y = mels()
    errors = [
        abs((x[b, c, t + 1] - x[b, c, t] - y[b, c, t + 1] + y[b, c, t]).item())
        for b, length in enumerate(LENGTHS.tolist())
        for c in range(13)
        for t in range(length - 1)
    ]
    assert delta_loss(x, y, LENGTHS).item() == pytest.approx(np.mean(errors), rel=1e-12)


def test_delta_loss_of_single_frames_is_zero():
    x, y = mels(n_frames=1)
    assert delta_loss(x, y, torch.ones(3, dtype=torch.int64)) == 0


def gaussian_mean(picture, c, t):
    """Weighted mean of the 11 x 11 neighbours of a pixel, in plain Python; edges are repeated."""
    total = weight_sum = 0.0
    for dc in range(-5, 6):
        for dt in range(-5, 6):
            weight = math.exp(-(dc * dc + dt * dt) / (2 * 1.5**2))
            row, column = min(max(c + dc, 0), len(picture) - 1), min(max(t + dt, 0), len(picture[0]) - 1)
            total, weight_sum = total + weight * picture[row][column], weight_sum + weight
    return total / weight_sum


def test_ssim_loss():
    """Wang et al. 2004, equation 13, with the range of log-mels, 13.5, as the dynamic range."""
    x, y = mels(n_frames=17)
    c1, c2 = (0.01 * 13.5) ** 2, (0.03 * 13.5) ** 2
    values = []
    for b, length in enumerate(LENGTHS.tolist()):
        a, z = ((m[b] + 11.5) * (torch.arange(17) < length) for m in (x, y))
        pictures = [p.tolist() for p in (a, z, a * a, z * z, a * z)]
        for c in range(13):
            for t in range(length):
                mean_a, mean_z, square_a, square_z, product = (gaussian_mean(p, c, t) for p in pictures)
                values.append(
                    (2 * mean_a * mean_z + c1)
                    * (2 * (product - mean_a * mean_z) + c2)
                    / (mean_a**2 + mean_z**2 + c1)
                    / (square_a - mean_a**2 + square_z - mean_z**2 + c2)
                )
    assert ssim_loss(x, y, LENGTHS).item() == pytest.approx(1 - np.mean(values), rel=1e-9)


def test_ssim_loss_sees_what_smoothing_takes_away():
    _, y = mels(n_channels=20, n_frames=40)
    smooth = torch.nn.functional.avg_pool1d(y, 9, 1, 4, count_include_pad=False)
    lengths = torch.full((3,), 40)
    assert ssim_loss(y, y, lengths).item() == pytest.approx(0, abs=1e-12)
    assert ssim_loss(smooth, y, lengths) > 0.5


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_does_not_count(loss):
    x, y = mels()
    padded, other = x.clone(), y.clone()
    padded[1, :, 1:], other[1, :, 1:], padded[2, :, 9:] = 1e4, -1e4, 7.0
    padded.requires_grad_()
    value = loss(padded, other, LENGTHS)
    assert value.item() == pytest.approx(loss(x, y, LENGTHS).item(), rel=1e-12)
    value.backward()
    inside = torch.arange(17) < LENGTHS.view(-1, 1, 1)
    assert not padded.grad.masked_select(~inside).any()
    assert torch.isfinite(padded.grad).all()
    assert padded.grad[0].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss):
    x, y = mels(n_channels=6)
    assert gradcheck(lambda mel: loss(mel, y, LENGTHS), [x.requires_grad_()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ssim_loss_of_half_precision_is_that_of_the_rounded_mels(dtype):
    x, y = (m.to(dtype) for m in mels())
    expected = ssim_loss(x.double(), y.double(), LENGTHS).item()
    with torch.autocast("cpu", dtype):
        assert ssim_loss(x, y, LENGTHS).item() == pytest.approx(expected, rel=1e-4)


WEIGHTS = {"l1_weight": 0.7, "delta_weight": 1.3, "ssim_weight": 2.1}


@pytest.mark.parametrize("name", WEIGHTS)
def test_training_adds_the_weighted_term_of_both_mels(prepared, tmp_path, name):
    def losses(**options):
        config, model_config = configs("tacotron2", prepared, tmp_path / "run", **options)
        trainer = Trainer("tacotron2", config, model_config, progress=False)
        trainer.state.model.eval()
        outputs = []
        trainer.state.model.register_forward_hook(lambda module, args, output: outputs.append(output))
        batch = trainer.task.collate([trainer.trainset[i] for i in range(3)])
        torch.manual_seed(0)
        return trainer.task.losses(trainer.state.model, batch), outputs[0], batch

    plain, *_ = losses()
    weighed, (before, after, *_), batch = losses(**{name: WEIGHTS[name]})
    term = name.replace("weight", "loss")
    assert set(weighed) == {*plain, term}
    loss = {"l1_loss": l1_loss, "delta_loss": delta_loss, "ssim_loss": ssim_loss}[term]
    expected = sum(loss(mel, batch.mel, batch.output_lengths) for mel in (before, after))
    torch.testing.assert_close(weighed[term], expected)
    torch.testing.assert_close(weighed["loss"], plain["loss"] + WEIGHTS[name] * expected)


@pytest.mark.parametrize("name", [*WEIGHTS, "upper_band_weight", "guided_attention_weight"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_weights_out_of_range(name, value):
    with pytest.raises(FastglowError, match=f"^{name}={value} must be finite and not negative$"):
        Tacotron2TrainConfig(data="d", out="o", **{name: value})


def test_upper_band_weight_needs_the_term_that_it_weighs(prepared, tmp_path):
    def trainer(**options):
        config, model_config = configs("tacotron2", prepared, tmp_path / "run", **options)
        return Trainer("tacotron2", config, model_config, progress=False)

    message = "^upper_band_weight=3.0 weighs the absolute error: pass l1_weight too, or upper"
    with pytest.raises(FastglowError, match=message):
        trainer(upper_band_weight=3.0)
    assert not (tmp_path / "run").exists()
    trainer(l1_weight=0.5, max_iterations=1).run()
    # A resumed run has the one that is not given from its checkpoint.
    config = trainer(resume=True, upper_band_weight=3.0).config
    assert (config.l1_weight, config.upper_band_weight) == (0.5, 3.0)
    with pytest.raises(FastglowError, match=message):
        config, model_config = configs("tacotron2", prepared, tmp_path / "run", resume=True, upper_band_weight=3.0)
        Trainer("tacotron2", config, model_config, progress=False, given={"l1_weight", "upper_band_weight"})
