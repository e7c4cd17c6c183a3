"""The upsampling as a matrix product is the transposed convolution."""

import pytest
import torch

from fastglow.kernels import backend
from fastglow.models.waveglow_upsampling import Upsample, group

from ..kernels.checks import assert_same_bits

SIZES = {
    "published": (80, 1024, 256, 8),
    "kernel no multiple of the stride": (3, 50, 12, 4),
    "kernel as long as the stride": (5, 12, 12, 6),
    "one group a frame": (2, 30, 8, 8),
}


@pytest.fixture(params=SIZES)
def sizes(request):
    return SIZES[request.param]


def build(channels, kernel_size, stride, dtype=torch.float64):
    upsample = Upsample(channels, kernel_size, stride).to(dtype)
    torch.nn.init.normal_(upsample.weight, 0, 0.1)
    torch.nn.init.normal_(upsample.bias)
    return upsample


def expected(upsample, mel, n_group):
    return group(upsample(mel)[:, :, : mel.shape[2] * upsample.stride[0]], n_group)


@pytest.mark.parametrize("n_frames", [1, 2, 9])
def test_is_the_convolution(sizes, n_frames):
    *shape, n_group = sizes
    upsample, mel = build(*shape), torch.randn(3, shape[0], n_frames, dtype=torch.float64)
    found = upsample.grouped(mel, n_group)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected(upsample, mel, n_group), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trains", [True, False])
def test_without_a_bias(sizes, trains):
    *shape, n_group = sizes
    upsample, mel = build(*shape), torch.randn(2, shape[0], 5, dtype=torch.float64)
    upsample.bias = None
    with torch.set_grad_enabled(trains):
        torch.testing.assert_close(upsample.grouped(mel, n_group), expected(upsample, mel, n_group))


def test_channels_last_for_the_kernels(sizes):
    *shape, n_group = sizes
    upsample, mel = build(*shape, dtype=torch.float32), torch.randn(2, shape[0], 5)
    with backend.use_backend("triton"):
        found, reference = upsample.grouped(mel, n_group), expected(upsample, mel, n_group)
    assert found.transpose(1, 2).is_contiguous() and found.stride() == reference.stride()
    torch.testing.assert_close(found, reference)


def test_new_weights_and_precisions(sizes):
    *shape, n_group = sizes
    upsample, mel = build(*shape), torch.randn(1, shape[0], 4, dtype=torch.float64)
    for change in (lambda: upsample.weight.mul_(2), lambda: upsample.bias.add_(1), upsample.float):
        upsample.grouped(mel.to(upsample.weight.dtype), n_group)
        with torch.no_grad():
            change()
        x = mel.to(upsample.weight.dtype)
        torch.testing.assert_close(upsample.grouped(x, n_group), expected(upsample, x, n_group))
    exact = expected(upsample, x, n_group)
    with torch.autocast("cpu", torch.bfloat16):
        found, of_pytorch = upsample.grouped(x, n_group), expected(upsample, x, n_group)
    assert found.dtype == of_pytorch.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2 * (of_pytorch - exact).abs().max()
    torch.testing.assert_close(upsample.grouped(x, n_group), exact)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("signal", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_only_float32_is_cast_and_only_to_bfloat16(weights, signal):
    upsample, mel = build(3, 8, 4, weights), torch.randn(2, 3, 5).to(signal)
    if signal == weights or (signal, weights) == (torch.float32, torch.bfloat16):
        assert_same_bits(upsample.grouped(mel, 2), upsample.grouped(mel.to(weights), 2))
    else:
        with pytest.raises(RuntimeError, match="have the same dtype"):
            upsample.grouped(mel, 2)


def test_its_state_is_the_convolutions():
    assert {name: tuple(x.shape) for name, x in Upsample(3, 8, 4).state_dict().items()} == {
        "weight": (3, 3, 8),
        "bias": (3,),
    }
