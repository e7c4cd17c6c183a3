"""Linear layers with packed weights, of any size, against float64."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastglow.kernels.cpu import int8_linear as module
from fastglow.kernels.cpu import linear
from fastglow.kernels.cpu.int8_linear import int8_linear, multiplies_integers
from fastglow.kernels.cpu.linear import packed_linear

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


def dequantised(weight, scale_dtype):
    """As int8_linear reads it, in float64: at most 127 steps on either side of zero, in each row."""
    step = (weight.abs().amax(1, keepdim=True) / 127).to(scale_dtype)
    return (weight / step.float()).round().double() * step.double()


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


FORMS = {
    "digits": pytest.param(
        True, marks=pytest.mark.skipif(not multiplies_integers(), reason="needs exact products of 8-bit integers")
    ),
    "bfloat16": False,
}


@pytest.fixture(params=FORMS.values(), ids=list(FORMS))
def by_digits(request, monkeypatch):
    """Each form of int8_linear; whether it is that of processors that multiply 8-bit integers."""
    monkeypatch.setattr(module, "multiplies_integers", lambda: request.param)
    return request.param


FIXTURE_FOR_ALL_EXAMPLES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@FIXTURE_FOR_ALL_EXAMPLES
@given(SIZES, st.sampled_from([1e-20, 1.0, 1e20]))
def test_int8_as_exact_as_pytorch_with_the_same_weights(by_digits, sizes, scale):
    """Of every width: PyTorch's product reads whole blocks of columns, past the end of the rows."""
    x, weight, bias = arguments(sizes, torch.float32)
    layer = int8_linear(weight, bias)
    assert layer.weights == torch.int8 and layer.n_bytes >= weight.numel()
    assert layer.dtype == (torch.float32 if by_digits else torch.bfloat16)
    x = (scale * x).to(layer.dtype)
    if not by_digits:
        assert_rounded_once(layer.product(x), x, dequantised(weight, x.dtype), bias.to(x.dtype), bias_apart=True)
        return
    weight = dequantised(weight, x.dtype)
    expected = x.double() @ weight.T + bias.double()
    # Each element of a row of x is off by half a step, a 65278th of the largest.
    half_step = x.double().abs().amax(1, keepdim=True) / 65278
    allowed = half_step * weight.abs().sum(1) * 1.001 + 2.0**-22 * (x.double().abs() @ weight.abs().T + bias.abs())
    assert ((layer.product(x).double() - expected).abs() <= allowed).all()


@FIXTURE_FOR_ALL_EXAMPLES
@given(SIZES, st.sampled_from([1e-30, 1.0, 1e30]))
def test_an_int8_weight_is_off_by_half_a_step(by_digits, sizes, scale):
    _, N, K, seed = sizes
    torch.manual_seed(seed)
    weight = scale * torch.randn(N, K) * torch.logspace(-2, 2, N).unsqueeze(1)
    layer = int8_linear(weight, torch.zeros(N))
    read = layer.product(torch.eye(K).to(layer.dtype)).T
    step = weight.abs().amax(1, keepdim=True) / 127
    rounding = 2.0**-8 * weight.abs()  # of the result
    assert ((read - weight).abs() <= 0.505 * step + rounding).all()


def test_int8_rows_of_zeros_and_of_one_value(by_digits):
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, -3.0, 0.0], [1e-42, 0.0, 0.0]])
    layer = int8_linear(weight, torch.tensor([1.0, 0.0, 0.0]))
    read = layer.product(torch.eye(3).to(layer.dtype))
    assert read[:, 0].tolist() == [1, 1, 1]
    torch.testing.assert_close(read[:, 1:].float(), weight.T[:, 1:], rtol=2**-7, atol=1e-37)
    assert layer.product(torch.zeros(2, 3, dtype=layer.dtype)).tolist() == 2 * [[1, 0, 0]]


@pytest.mark.parametrize("n", [1, 7, 64, 65, 2560])
def test_int8_products_of_the_largest_values(by_digits, n):
    """Sums that end at 16 bits would be wrong."""
    weight = torch.ones(n, n).tril() - torch.ones(n, n).triu(1)
    layer = int8_linear(weight, torch.zeros(n))
    x = torch.tensor([[1.0], [-1.0]]).expand(2, n).to(layer.dtype)
    torch.testing.assert_close(layer.product(x).float(), x.float() @ weight.T, rtol=2**-7, atol=1e-3)


def test_int8_digits_have_the_bits_of_a_row_alone_and_keep_nan():
    if not multiplies_integers():
        pytest.skip("needs exact products of 8-bit integers")
    x, weight, bias = arguments((9, 37, 53, 1), torch.float32)
    layer = int8_linear(weight, bias)
    x[3, 5], x[4, 6] = math.nan, math.inf
    found = layer.product(x)
    for i in (0, 1, 2, 5, 6, 7, 8):
        assert_same_bits(layer.product(x[i : i + 1])[0], found[i])
    assert not found[3:5].isfinite().any() and found[[0, 1, 2, 5, 6, 7, 8]].isfinite().all()


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


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_int8_whatever_the_default_dtype_is(dtype):
    """Of the process that imports the module, too."""
    code = f"""
import torch
torch.set_default_dtype(torch.{dtype})
from fastglow.kernels.cpu.int8_linear import int8_linear
generator = torch.Generator().manual_seed(0)
x, weight = (torch.randn(8, 40, generator=generator, dtype=torch.float32) for _ in range(2))
layer = int8_linear(weight, torch.zeros(8, dtype=torch.float32))
found, expected = layer.product(x.to(layer.dtype)).double(), x.double() @ weight.double().T
print(float((found - expected).norm() / expected.norm()) < 0.02)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "True\n", done.stderr
