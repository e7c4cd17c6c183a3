"""The losses against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from fastglow import Tacotron2Loss, WaveGlowLoss
from fastglow.errors import FastglowError
from fastglow.train.losses import GuidedAttentionLoss


def tacotron2_batch(r=1):
    """(model output, targets) of 2 items, 3 mel channels and 6 frames."""
    mel, postnet = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    gate = torch.randn(2, 6 // r, dtype=torch.float64)
    lengths = torch.tensor([6, 3])
    gate_target = (torch.arange(6) >= lengths.unsqueeze(1) - 1).double()
    return [mel, postnet, gate, None], (torch.randn(2, 3, 6, dtype=torch.float64), gate_target)


def cross_entropy(logit, target):
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if target else 1 - probability)


# By frames per step: each item's steps whose target is 1. The lengths are 6 and 3: from frames 5 and 2 on.
STEP_TARGETS = {
    1: [[0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1]],
    2: [[0, 0, 1], [0, 1, 1]],
    3: [[0, 1], [1, 1]],
    6: [[1], [1]],
}


@pytest.mark.parametrize("r", STEP_TARGETS)
def test_tacotron2_loss(r):
    (mel, postnet, gate, alignments), targets = tacotron2_batch(r)
    expected = ((mel - targets[0]) ** 2).numpy().mean() + ((postnet - targets[0]) ** 2).numpy().mean()
    expected += np.mean(
        [
            cross_entropy(logit, target)
            for logits, step_targets in zip(gate.tolist(), STEP_TARGETS[r], strict=True)
            for logit, target in zip(logits, step_targets, strict=True)
        ]
    )
    loss = Tacotron2Loss()([mel, postnet, gate, alignments], targets)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_tacotron2_loss_gradients():
    (mel, postnet, gate, _), targets = tacotron2_batch(2)
    inputs = [x.requires_grad_() for x in (mel, postnet, gate)]
    assert gradcheck(lambda *outputs: Tacotron2Loss()([*outputs, None], targets), inputs)


def test_tacotron2_loss_of_a_perfect_output_is_zero():
    _, (mel, gate_target) = tacotron2_batch()
    assert Tacotron2Loss()([mel, mel, 1000 * (2 * gate_target - 1), None], (mel, gate_target)) == 0


def test_tacotron2_loss_refuses_an_incomplete_last_step():
    output, (mel, gate_target) = tacotron2_batch(2)
    with pytest.raises(FastglowError, match="5 gate targets for 3 decoder steps: pad") as error:
        Tacotron2Loss()(output, (mel, gate_target[:, :5]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sigma", [None, 1.0, 0.7])
def test_waveglow_loss(sigma):
    z = torch.randn(2, 4, 5, dtype=torch.float64)
    log_s = [torch.randn(2, 2, 5, dtype=torch.float64), torch.randn(2, 1, 5, dtype=torch.float64)]
    log_det = [torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.7, dtype=torch.float64)]
    criterion = WaveGlowLoss() if sigma is None else WaveGlowLoss(sigma=sigma)
    s = sigma or 1.0
    expected = (z.numpy() ** 2).sum() / (2 * s * s) - sum(x.numpy().sum() for x in log_s) - (0.3 - 1.7)
    for loss in (criterion((z, log_s, log_det)), criterion((z, log_s, log_det), "ignored")):
        assert loss.item() == pytest.approx(expected / 40, rel=1e-12)


def test_waveglow_loss_is_the_likelihood_of_the_audio():
    """For z = a x + b: -log of the normal density of x, per sample, without its constant log sqrt(2 pi sigma^2)."""
    a, b, sigma = torch.tensor([1.7, -0.4, 0.6], dtype=torch.float64).unbind()
    x = torch.randn(1, 1, 9, dtype=torch.float64)
    log_s = [a.log().expand_as(x)]
    loss = WaveGlowLoss(sigma)((a * x + b, log_s, [torch.zeros((), dtype=torch.float64)]))
    density = torch.distributions.Normal(-b / a, sigma / a).log_prob(x).mean()
    assert loss.item() == pytest.approx(-density.item() - math.log(sigma * math.sqrt(2 * math.pi)), rel=1e-12)


@pytest.mark.parametrize("g", [None, 0.2, 0.5])
def test_guided_attention_loss(g):
    alignments = torch.softmax(torch.randn(3, 6, 5, dtype=torch.float64), dim=2)
    input_lengths, output_steps = [5, 2, 1], [4, 6, 1]
    width = g or 0.2
    cells = [
        alignments[item, t, n].item() * (1 - math.exp(-((n / n_in - t / n_out) ** 2) / (2 * width**2)))
        for item, (n_in, n_out) in enumerate(zip(input_lengths, output_steps, strict=True))
        for t in range(n_out)
        for n in range(n_in)
    ]
    criterion = GuidedAttentionLoss() if g is None else GuidedAttentionLoss(g)
    loss = criterion(alignments, torch.tensor(input_lengths), torch.tensor(output_steps))
    assert loss.item() == pytest.approx(sum(cells) / len(cells), rel=1e-6)


def test_guided_attention_loss_ignores_padding():
    input_lengths, output_steps = torch.tensor([5, 2]), torch.tensor([4, 6])
    alignments = torch.rand(2, 6, 5)
    padded = alignments.clone()
    padded[0, 4:], padded[1, :, 2:] = 100.0, 100.0
    padded.requires_grad_()
    loss = GuidedAttentionLoss()(padded, input_lengths, output_steps)
    assert loss == GuidedAttentionLoss()(alignments, input_lengths, output_steps)
    loss.backward()
    assert not padded.grad[0, 4:].any()
    assert not padded.grad[1, :, 2:].any()
    assert padded.grad.any()


def test_guided_attention_loss_is_least_on_the_diagonal():
    lengths = torch.tensor([6])
    diagonal = GuidedAttentionLoss()(torch.eye(6).unsqueeze(0), lengths, lengths)
    assert diagonal == 0
    assert GuidedAttentionLoss()(torch.eye(6).flip(1).unsqueeze(0), lengths, lengths) > 0.1


def test_tacotron2_loss_weighs_the_gates_positive_targets():
    mel, gate = torch.randn(2, 3, 5), torch.randn(2, 5)
    target = torch.tensor([[0.0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    loss = Tacotron2Loss(gate_positive_weight=7.0)([mel, mel, gate, None], (mel, target))
    p = torch.sigmoid(gate)
    expected = -(7 * target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(loss, expected)
