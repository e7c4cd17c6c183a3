"""Invertible 1x1 convolutions of WaveGlow, RAD-TTS and Glow-TTS before and after."""

import math

import pytest
import torch

from fastglow import accelerate
from fastglow.kernels import backend

from .comparing import assert_close, assert_same_results, results, tensors
from .rebuilt import (
    InvConvNear,
    InvertibleLUS,
    InvertibleOfExamples,
    InvertibleOfRadTTS,
    InvertibleOfWaveGlow,
    rotation,
)

OP = "invertible_conv1x1"

# A W_inverse that an earlier call kept has no gradient, and is of older weights: the inverses are compared apart.
CASES = {
    "waveglow": (InvertibleOfWaveGlow, lambda conv, z: conv(z)),
    "examples": (InvertibleOfExamples, lambda conv, z: conv(z)),
    "radtts": (InvertibleOfRadTTS, lambda conv, z: conv(z)),
    "radtts inverse": (InvertibleOfRadTTS, lambda conv, z: conv(z, inverse=True)),
    "lus": (InvertibleLUS, lambda conv, z: conv(z)),
    "lus inverse": (InvertibleLUS, lambda conv, z: conv(z, True)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("c", [2, 4, 8])
def test_results_and_gradients(case, c):
    torch.manual_seed(1)
    cls, call = CASES[case]
    assert_same_results(stretched(cls(c)), call, [torch.randn(3, c, 7)], OP)


def stretched(conv):
    """With a log-determinant that is not mere rounding."""
    with torch.no_grad():
        getattr(conv, "upper_diag", getattr(getattr(conv, "conv", None), "weight", None)).mul_(1.5)
    return conv


@pytest.mark.parametrize("cls", [InvertibleOfWaveGlow, InvertibleOfExamples, InvertibleOfRadTTS, InvertibleLUS])
def test_rotations_are_recognised(cls):
    """Their log-determinants are nothing but rounding, with any factor."""
    for seed in range(5):
        torch.manual_seed(seed)
        conv, z = cls(4), torch.randn(2, 4, 7)
        accelerate(conv, strict=True)
        factor = 1 if cls in (InvertibleOfRadTTS, InvertibleLUS) else 2 * 7
        torch.testing.assert_close(stretched(conv)(z)[1], torch.tensor(4 * math.log(1.5)) * factor)


@pytest.mark.parametrize("cls, call", [
    (InvertibleOfWaveGlow, lambda conv, z: conv(z, reverse=True)),
    (InvertibleOfWaveGlow, lambda conv, z: conv(z, True)),
    (InvertibleOfExamples, lambda conv, z: conv.infer(z)),
])  # fmt: skip
def test_inverses_are_never_stale(cls, call):
    torch.manual_seed(2)
    conv, z = cls(4), torch.randn(2, 4, 5)
    call(conv, z)
    accelerate(conv, strict=True)
    with torch.no_grad():
        for weight in (conv.conv.weight, torch.randn(4, 4, 1)):
            conv.conv.weight.copy_(weight)
            torch.testing.assert_close(call(conv, conv(z)[0]), z, rtol=1e-4, atol=1e-4)
            conv.conv.weight.data.mul_(2.0)
            conv.eval()  # after a write that PyTorch does not count
            torch.testing.assert_close(call(conv, conv(z)[0]), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("no_jacobian", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("channels, n", [(8, 4), (12, 2), (24, 8)])
@pytest.mark.parametrize("call", [
    lambda conv, x, mask: conv(x),
    lambda conv, x, mask: conv(x, mask),
    lambda conv, x, mask: conv(x, x_mask=mask, g="ignored"),
    lambda conv, x, mask: conv(x, mask, reverse=True),
    lambda conv, x, mask: conv(x, None, True),
])  # fmt: skip
def test_inv_conv_near(channels, n, stored, no_jacobian, call):
    torch.manual_seed(3)
    conv = InvConvNear(channels, n, no_jacobian)
    if stored:
        conv.store_inverse()
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).unsqueeze(1).float()
    assert_same_results(conv, call, [torch.randn(2, channels, 9), mask], OP)


@pytest.mark.parametrize("T", [4001, 7])
def test_log_determinants_under_autocast_count_every_position(T):
    """bfloat16 has no 4001."""
    conv, x = InvConvNear(4, 2), torch.randn(1, 4, T)
    with torch.no_grad():
        conv.weight.mul_(1.5)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x)
        accelerate(conv, strict=True)
        found = conv(x)
    assert [y.dtype for y in expected] == [y.dtype for y in found]
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("case", CASES)
def test_a_signal_without_a_batch(case):
    cls, call = CASES[case]
    conv, z = cls(4), torch.randn(4, 5)
    attempts = []
    for _ in range(2):
        try:
            attempts.append([y.detach() for y in tensors(call(conv, z))])
        except IndexError as error:  # of the batch's size
            attempts.append(str(error))
        accelerate(conv, strict=True)
    assert attempts[0] == attempts[1] if isinstance(attempts[0], str) else all(map(torch.equal, *attempts))


def test_a_negative_determinant_has_a_finite_logarithm():
    conv = InvertibleOfWaveGlow(4)
    with torch.no_grad():
        conv.conv.weight[:, 0] *= -2.0
    z = torch.randn(2, 4, 5)
    assert conv(z)[1].isnan()
    entries = accelerate(conv).left
    assert "not finite" in entries[0].text  # its own results cannot be compared
    with torch.no_grad():
        conv.conv.weight[:, 0] *= -1.0
    accelerate(conv, strict=True)
    with torch.no_grad():
        conv.conv.weight[:, 0] *= -1.0
    expected = 10 * torch.linalg.slogdet(conv.conv.weight.squeeze()).logabsdet
    torch.testing.assert_close(conv(z)[1], expected)


def test_the_kernels_run():
    torch.manual_seed(4)
    conv, z = stretched(InvertibleOfRadTTS(4)), torch.randn(2, 4, 6)
    expected = results(conv, lambda conv, z: (*conv(z), conv(z, inverse=True)), [z], True)
    accelerate(conv, strict=True)
    with backend.use_backend("triton"):
        before = backend.launches[OP]
        found = results(conv, lambda conv, z: (*conv(z), conv(z, inverse=True)), [z], True)
    assert backend.launches[OP] > before
    assert_close(expected, found)


def test_a_rotation_has_determinant_one():
    for c in (2, 3, 8):
        assert torch.linalg.det(rotation(c)) == pytest.approx(1.0, abs=1e-5)
