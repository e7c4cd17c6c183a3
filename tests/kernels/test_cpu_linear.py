"""Linear layers with packed weights, of any size, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastglow.kernels.cpu import linear
from fastglow.kernels.cpu.linear import int8_linear, packed_linear

from .checks import assert_same_bits, strided

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**31))


def arguments(sizes, dtype):
    """(x [M, K], weight [N, K] of the dtype, bias [N] float32)."""
    M, N, K, seed = sizes
    torch.manual_seed(seed)
    return torch.randn(M, K, dtype=dtype), torch.randn(N, K).to(dtype), torch.randn(N)


def assert_rounded_once(actual, x, weight, bias, bias_apart=False):
    """Sums in float32 in any order (Higham 2002, section 3.1), a rounding to the dtype, and one before the bias."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    product, terms = x @ weight.T, x.abs() @ weight.abs().T + bias.abs()
    allowed = (x.shape[1] + 3) * 2.0**-24 * terms + torch.finfo(actual.dtype).eps * (product + bias).abs()
    if bias_apart:
        allowed += torch.finfo(actual.dtype).eps * product.abs()
    assert ((actual.double() - product - bias).abs() <= allowed).all()


def dequantised(weight):
    """As int8_linear reads it, in float64: at most 127 steps of a bfloat16 size on either side of zero, in each row."""
    step = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().double()
    return (weight / step).round() * step


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, strided])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_exact_as_pytorch(dtype, layout, packs):
    @settings(max_examples=20)
    @given(SIZES)
    def check(sizes):
        x, weight, bias = arguments(sizes, dtype)
        layer = packed_linear(layout(weight), bias)
        assert layer.dtype == dtype and layer.n_bytes == weight.nbytes
        assert_rounded_once(layer.product(layout(x)), x, weight, bias.to(dtype))

    with pytest.MonkeyPatch.context() as patch:
        if not packs:
            patch.setattr(linear, "packs", lambda dtype: False)
        check()


@given(SIZES)
def test_int8_as_exact_as_pytorch_with_the_same_weights(sizes):
    """Of every width: PyTorch's product reads whole blocks of columns, past the end of the rows."""
    x, weight, bias = arguments(sizes, torch.float32)
    x, layer = x.bfloat16(), int8_linear(weight, bias)
    assert layer.dtype == torch.bfloat16 and layer.n_bytes >= weight.numel()
    assert_rounded_once(layer.product(x), x, dequantised(weight), bias.bfloat16(), bias_apart=True)


@given(SIZES, st.sampled_from([1e-30, 1.0, 1e30]))
def test_an_int8_weight_is_off_by_half_a_step(sizes, scale):
    _, N, K, seed = sizes
    torch.manual_seed(seed)
    weight = scale * torch.randn(N, K) * torch.logspace(-2, 2, N).unsqueeze(1)
    read = int8_linear(weight, torch.zeros(N)).product(torch.eye(K).bfloat16()).T
    step = weight.abs().amax(1, keepdim=True) / 127
    rounding = 2.0**-8 * weight.abs()  # of the result
    assert ((read - weight).abs() <= 0.505 * step + rounding).all()


def test_int8_rows_of_zeros_and_of_one_value():
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, -3.0, 0.0], [1e-42, 0.0, 0.0]])
    read = int8_linear(weight, torch.tensor([1.0, 0.0, 0.0])).product(torch.eye(3).bfloat16())
    assert read[:, 0].tolist() == [1, 1, 1]
    torch.testing.assert_close(read[:, 1:].float(), weight.T[:, 1:], rtol=2**-7, atol=1e-37)


@pytest.mark.parametrize("make", [packed_linear, lambda w, b: packed_linear(w.bfloat16(), b), int8_linear])
def test_the_same_bits_wherever_the_memory_is(make):
    x, weight, bias = arguments((3, 37, 53, 1), torch.float32)
    layer = make(weight, bias)
    x = x.to(layer.dtype)
    first, held = layer.product(x), []
    for n in (1, 3, 17, 1000, 4099):
        held.append(torch.empty(n, dtype=torch.uint8))
        assert_same_bits(layer.product(x.clone()), first)
        assert_same_bits(make(weight, bias).product(x), first)
